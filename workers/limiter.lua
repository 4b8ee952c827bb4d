-- The fleet's limiter: one account and class of models in each call, everything or nothing, in one atomic step.
--
-- Needs nothing newer than Redis 6.2 or Valkey 7.2. policies/limits.py (class Bucket) is the same arithmetic in Python and
-- explains it; a property test compares both. What is only here: who waits, and who has been woken.
--
-- KEYS  1 state (hash), 2 slots under way (zset by end of lease), 3 waiting interactive, 4 waiting batch (zsets by turn),
--       5 woken (hash: job -> "until input output"), 6 turns (hash: tenant -> last turn given out)
-- ARGV  1 what to do, 2 time in microseconds (0 = the server's own), 3 the lane as JSON, 4 what it is about as JSON
--
-- Lane: {q: {r,i,o,t: limits of the policy file, 0 = none}, burst, share, most, lease, ramp}

local DIMENSIONS = {'r', 'i', 'o', 't', 'g'}
local MEASURED = {'r', 'i', 'o', 't'}
local COLD, STEP, CUT_US, AGREE, BUSY_US = 4, 20, 1000000, 8, 50000
local RAMP, RAMP_US, GROWTH = 1000000, 900000000, 1.5
local KEEP_S, WOKEN_US, PUMP_ALIVE_US = 604800, 10000000, 2000000

local now = tonumber(ARGV[2])
if now == 0 then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local lane = cjson.decode(ARGV[3])
local ask = cjson.decode(ARGV[4])

local state, changed = {}, {}
do
  local flat = redis.call('HGETALL', KEYS[1])
  for n = 1, #flat, 2 do state[flat[n]] = tonumber(flat[n + 1]) end
end
local function get(field) return state[field] end
local function put(field, value)
  if state[field] ~= value then state[field] = value; changed[field] = true end
end
local function save()
  local flat = {}
  for field in pairs(changed) do
    flat[#flat + 1] = field
    -- 17 digits bring every number back as it was; an empty text is none.
    flat[#flat + 1] = state[field] and string.format('%.17g', state[field]) or ''
  end
  if #flat > 0 then
    redis.call('HSET', KEYS[1], unpack(flat))
    redis.call('EXPIRE', KEYS[1], KEEP_S)
  end
end

local function limit(d)
  if d == 'g' then return get('gq') or 0 end
  local given, told = lane.q[d], get('q' .. d) or 0
  if given > 0 and told > 0 then return math.min(given, told) end
  return given > 0 and given or told
end
local function capacity(d) return limit(d) * lane.burst / 60 end

local function refill()
  local at = get('at')
  local passed = at and math.max(0, now - at) / 1e6 or 0
  put('at', at and math.max(at, now) or now)
  for _, d in ipairs(DIMENSIONS) do
    local most = limit(d)
    if most > 0 then
      local full = capacity(d)
      put('l' .. d, math.min(full, (get('l' .. d) or full) + most / 60 * passed))
    end
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  if not lane.ramp or limit('t') <= RAMP then return end
  if not get('gq') then
    put('gq', RAMP); put('gs', now); put('gu', 0)
    put('lg', capacity('g'))
  elseif now - get('gs') >= RAMP_US then
    local a_minute = get('gu') / ((now - get('gs')) / 6e7)
    put('gq', math.max(RAMP, GROWTH * a_minute)); put('gs', now); put('gu', 0)
  end
end

local function most_in_flight()
  local cap = get('cap') or lane.most
  return get('known') and cap or math.min(COLD, cap)
end

local function amounts(input, output) return {r = 1, i = input, o = output, t = input + output, g = input} end

-- Microseconds until `need` fits under the levels less `promised`; 0 = now.
local function wait_for(need, is_batch, promised)
  local share = is_batch and lane.share or 0
  local wait = 0
  for _, d in ipairs(DIMENSIONS) do
    local most = limit(d)
    if most > 0 then
      local full = capacity(d)
      local level = get('l' .. d) - (promised and promised[d] or 0)
      local wanted = math.min(need[d] + share * full, full)
      if level < wanted then wait = math.max(wait, (wanted - level) / (most / 60)) end
    end
  end
  return wait > 0 and math.floor(wait * 1e6) + 1 or 0
end

local function ticket()
  local parts = {}
  for _, d in ipairs(MEASURED) do
    if limit(d) > 0 then
      parts[#parts + 1] = string.format('%s:%.17g:%.17g:%.17g', d, get('l' .. d), get('n' .. d) or 0, get('k' .. d) or 0)
    end
  end
  return table.concat(parts, ' ')
end

-- reserve: {batch, calls: [[slot, input, output, least input, least output, job], ...]}
-- returns "ticket;headroom;kind:wait,..." with kinds a(dmitted) r(ate) b(usy) x (blocked) q(ueue) n(ever); headroom is the
-- share of the emptiest bucket that is left
local function reserve()
  refill()
  local blocked, under_way, most = get('blocked') or 0, redis.call('ZCARD', KEYS[2]), most_in_flight()
  -- Who is new goes behind those who wait, as long as somebody is there to wake them.
  local ahead = 0
  if now - (get('pump') or 0) < PUMP_ALIVE_US then
    ahead = redis.call('ZCARD', KEYS[3]) + (ask.batch and redis.call('ZCARD', KEYS[4]) or 0)
  end
  local woken = {}
  if redis.call('EXISTS', KEYS[5]) == 1 then
    local jobs = {}
    for n, call in ipairs(ask.calls) do jobs[n] = call[6] end
    for n, found in ipairs(redis.call('HMGET', KEYS[5], unpack(jobs))) do woken[n] = found end
  end
  local said, stopped, slots, spent = {}, false, {}, {}
  for n, call in ipairs(ask.calls) do
    local need, least = amounts(call[2], call[3]), amounts(call[4], call[5])
    least.g = 0
    local kind, wait = 'a', 0
    for _, d in ipairs(DIMENSIONS) do
      if limit(d) > 0 and least[d] > limit(d) then kind = 'n' end
    end
    if kind == 'a' and blocked > now then kind, wait = 'x', blocked - now end
    if kind == 'a' and ahead > 0 and not woken[n] then
      -- How long those in front take, as if all were like this one.
      for _, d in ipairs(DIMENSIONS) do
        if limit(d) > 0 then wait = math.max(wait, (ahead + n) * need[d] / (limit(d) / 60)) end
      end
      kind, wait = 'q', math.floor(wait * 1e6) + 1
    end
    if kind == 'a' then
      wait = wait_for(need, ask.batch)
      if wait > 0 then kind = 'r' end
    end
    if kind == 'a' and under_way >= most then kind, wait = 'b', BUSY_US end
    if kind == 'a' and stopped then kind, wait = 'q', BUSY_US end
    if kind == 'a' then
      under_way = under_way + 1
      for _, d in ipairs(DIMENSIONS) do
        put('l' .. d, (get('l' .. d) or 0) - need[d])
        put('n' .. d, (get('n' .. d) or 0) + need[d])
      end
      if get('gq') then put('gu', get('gu') + need.g) end
      slots[#slots + 1] = now + lane.lease
      slots[#slots + 1] = call[1]
      if woken[n] then spent[#spent + 1] = call[6] end
    elseif kind ~= 'n' then
      stopped = true
    end
    said[n] = kind .. ':' .. string.format('%.0f', wait)
  end
  if #slots > 0 then
    redis.call('ZADD', KEYS[2], unpack(slots))
    redis.call('PEXPIRE', KEYS[2], math.ceil(lane.lease / 1000))
  end
  if #spent > 0 then redis.call('HDEL', KEYS[5], unpack(spent)) end
  save()
  local headroom = blocked > now and 0 or math.max(0, (most - under_way) / most)
  for _, d in ipairs(MEASURED) do
    if limit(d) > 0 then headroom = math.min(headroom, math.max(0, get('l' .. d) / capacity(d))) end
  end
  return string.format('%s;%.4f;%s', ticket(), headroom, table.concat(said, ','))
end

local function take_off(d, amount)
  put('l' .. d, get('l' .. d) - amount)
  put('k' .. d, (get('k' .. d) or 0) + amount)
  put('m' .. d, nil); put('c' .. d, nil)
end

local function refund(input, output, used_input, used_output, is_unused)
  local reserved, used = amounts(input, output), amounts(used_input, used_output)
  if is_unused then used.r = 0 end
  for _, d in ipairs(DIMENSIONS) do
    if limit(d) > 0 then
      put('l' .. d, math.min(capacity(d), get('l' .. d) + (reserved[d] - used[d])))
    else
      put('l' .. d, (get('l' .. d) or 0) + reserved[d])
    end
  end
  if get('gq') then put('gu', math.max(0, get('gu') + (used.g - reserved.g))) end
end

local function learn_limit(d, told, remaining)
  if told <= 0 or get('q' .. d) == told then return end
  local was_known, was_told = limit(d) > 0, get('q' .. d) ~= nil
  put('q' .. d, told)
  local full = capacity(d)
  local owed = 0
  if was_known then
    put('l' .. d, math.min(full, get('l' .. d)))
  else
    put('l' .. d, full + (get('l' .. d) or 0))
    owed = get('l' .. d) - full
  end
  if not was_told and remaining >= 0 then put('l' .. d, math.min(get('l' .. d), remaining + owed)) end
end

local function lower(d, remaining, level, reserved, lowered)
  local gap = (level - ((get('k' .. d) or 0) - lowered)) - remaining
  local certain = gap - ((get('n' .. d) or 0) - reserved)
  if certain > 0 then return take_off(d, certain) end
  put('m' .. d, math.min(get('m' .. d) or gap, gap))
  put('c' .. d, (get('c' .. d) or 0) + 1)
  if get('c' .. d) >= AGREE then take_off(d, math.max(0, get('m' .. d))) end
end

local function grow(by)
  put('known', 1)
  local cap, feeling = get('cap'), get('cut') == nil
  for _, d in ipairs(MEASURED) do
    if limit(d) > 0 then feeling = false end
  end
  if not cap then
    if not feeling then return end
    cap = COLD
    put('cap', cap)
  end
  put('wins', (get('wins') or 0) + 1)
  if feeling or get('wins') >= STEP then put('cap', math.min(lane.most, cap + (feeling and by or 1))); put('wins', 0) end
end

-- settle: [[slot, input, output, used input, used output, outcome, retry, limits, remaining, ticket], ...]; limits and
-- remaining are lists in the order of MEASURED, 0 and -1 = not said. Outcomes: begun ok
-- done throttled overloaded failed unused.
local function settle()
  refill()
  for _, ended in ipairs(ask) do
    local slot, input, output, outcome, retry = ended[1], ended[2], ended[3], ended[6], ended[7]
    -- A slot that is gone gives nothing back: a settlement that is sent twice must not refund twice.
    if outcome ~= 'begun' and redis.call('ZREM', KEYS[2], slot) == 1 then
      refund(input, output, ended[4], ended[5], outcome == 'unused')
    end
    if outcome ~= 'unused' then
      for n, d in ipairs(MEASURED) do learn_limit(d, ended[8][n], ended[9][n]) end
      if outcome == 'ok' or outcome == 'begun' then
        local levels = {}
        for d, level, reserved, lowered in string.gmatch(ended[10], '(%a):([^: ]+):([^: ]+):([^: ]+)') do
          levels[d] = {tonumber(level), tonumber(reserved), tonumber(lowered)}
        end
        for n, d in ipairs(MEASURED) do
          if ended[9][n] >= 0 and limit(d) > 0 and levels[d] then lower(d, ended[9][n], unpack(levels[d])) end
        end
        grow(outcome == 'begun' and 2 or 1)
      elseif outcome == 'throttled' or outcome == 'overloaded' then
        if now - (get('cut') or 0) >= CUT_US then
          local under_way = redis.call('ZCARD', KEYS[2]) + 1
          put('cap', math.max(1, math.floor(math.min(get('cap') or lane.most, under_way) / 2)))
          put('cut', now); put('wins', 0)
        end
        if retry > 0 then put('blocked', math.max(get('blocked') or 0, now + retry)) end
        if outcome == 'throttled' then
          local need = amounts(input, output)
          for _, d in ipairs(MEASURED) do
            if limit(d) > 0 then
              local upto = need[d] - limit(d) / 60 * (retry / 1e6)
              if get('l' .. d) > upto then take_off(d, get('l' .. d) - upto) end
            end
          end
        end
      end
    end
  end
  save()
  return 'ok'
end

-- wait: {batch, jobs: [[job, input, output, tenant], ...]}: stand in line. Tenants take turns: a job's turn is one after
-- its tenant's last, and never before the turn that is being served. Who was woken in vain is next again.
local function stand_in_line()
  local line = ask.batch and KEYS[4] or KEYS[3]
  local served = get(ask.batch and 'vlo' or 'vhi') or 0
  local field = ask.batch and 'lo:' or 'hi:'
  for _, job in ipairs(ask.jobs) do
    local turn = served
    if redis.call('HDEL', KEYS[5], job[1]) == 0 then
      turn = math.max(served, tonumber(redis.call('HGET', KEYS[6], field .. job[4]) or 0)) + 1
      redis.call('HSET', KEYS[6], field .. job[4], string.format('%.17g', turn))
    end
    redis.call('ZADD', line, turn, string.format('%s %.0f %.0f', job[1], job[2], job[3]))
  end
  redis.call('EXPIRE', line, KEEP_S)
  redis.call('EXPIRE', KEYS[6], 3600)
  return redis.call('ZCARD', KEYS[3]) + redis.call('ZCARD', KEYS[4])
end

-- wake: {most}: take out of the line as many as the buckets admit now, interactive first; they are expected to reserve
-- within WOKEN_US and until then their need counts as promised. Returns how many still wait, then the jobs.
local function wake()
  refill()
  put('pump', now)
  local promised, pending, old = {r = 0, i = 0, o = 0, t = 0, g = 0}, 0, {}
  local flat = redis.call('HGETALL', KEYS[5])
  for n = 1, #flat, 2 do
    local untill, input, output = string.match(flat[n + 1], '(%S+) (%S+) (%S+)')
    if tonumber(untill) <= now then
      old[#old + 1] = flat[n]
    else
      pending = pending + 1
      for d, amount in pairs(amounts(tonumber(input), tonumber(output))) do promised[d] = promised[d] + amount end
    end
  end
  if #old > 0 then redis.call('HDEL', KEYS[5], unpack(old)) end
  local room = most_in_flight() - redis.call('ZCARD', KEYS[2]) - pending
  local jobs = {0}
  if (get('blocked') or 0) <= now then
    for _, class in ipairs({{KEYS[3], false, 'vhi'}, {KEYS[4], true, 'vlo'}}) do
      local head = room > 0 and redis.call('ZRANGE', class[1], 0, math.min(room, ask.most) - 1, 'WITHSCORES') or {}
      local taken, is_next_too_large = {}, false
      for n = 1, #head, 2 do
        local job, input, output = string.match(head[n], '(%S+) (%S+) (%S+)')
        local need = amounts(tonumber(input), tonumber(output))
        is_next_too_large = wait_for(need, class[2], promised) > 0
        if is_next_too_large or #jobs > ask.most then break end
        room = room - 1
        for d, amount in pairs(need) do promised[d] = promised[d] + amount end
        taken[#taken + 1] = head[n]
        jobs[#jobs + 1] = job
        redis.call('HSET', KEYS[5], job, string.format('%.0f %s %s', now + WOKEN_US, input, output))
        put(class[3], tonumber(head[n + 1]))
      end
      if #taken > 0 then redis.call('ZREM', class[1], unpack(taken)) end
      -- A large interactive job must not be starved by small batch jobs.
      if is_next_too_large then break end
    end
    if #jobs > 1 then redis.call('EXPIRE', KEYS[5], 60) end
  end
  jobs[1] = redis.call('ZCARD', KEYS[3]) + redis.call('ZCARD', KEYS[4])
  save()
  return jobs
end

-- renew: [slot, ...]: calls that are still under way keep their slots.
local function renew()
  for _, slot in ipairs(ask) do
    if redis.call('ZSCORE', KEYS[2], slot) then redis.call('ZADD', KEYS[2], now + lane.lease, slot) end
  end
  redis.call('PEXPIRE', KEYS[2], math.ceil(lane.lease / 1000))
  return 'ok'
end

if ARGV[1] == 'reserve' then return reserve() end
if ARGV[1] == 'settle' then return settle() end
if ARGV[1] == 'wait' then return stand_in_line() end
if ARGV[1] == 'wake' then return wake() end
if ARGV[1] == 'renew' then return renew() end
return redis.error_reply('the limiter knows reserve, settle, wait, wake and renew, not ' .. ARGV[1])
