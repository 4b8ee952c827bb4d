-- Who may read a prompt's prefix from the provider's cache, and who is just writing it. One hash for each lane, account
-- and prefix: state (lead, warm or plain), its end, the leader, whether the entry is a long-lived one, last use and mean gap.
-- ARGV: what, owner, milliseconds, 1 for a long-lived entry
local key, what, owner, ms, long = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local found = redis.call('HMGET', key, 'state', 'until', 'owner', 'long', 'last', 'gap')
local state, over, holder, is_long = found[1], tonumber(found[2] or 0), found[3], found[4] or '0'
local last, gap = tonumber(found[5] or 0), tonumber(found[6] or -1)

local function keep(new, span, as_long)
  redis.call('HSET', key, 'state', new, 'until', now + span, 'owner', owner, 'long', as_long)
  redis.call('PEXPIRE', key, 14400000)
end

if what == 'enter' or what == 'look' then
  if what == 'enter' then
    if last > 0 then
      local since = now - last
      gap = gap < 0 and since or math.floor(0.7 * gap + 0.3 * since)
    end
    redis.call('HSET', key, 'last', now, 'gap', gap)
    redis.call('PEXPIRE', key, 14400000)
  end
  if state and over > now then
    return { state == 'lead' and 'follow' or state, over - now, gap, is_long }
  end
  keep('lead', ms, '0')
  return { 'lead', ms, gap, '0' }
end
if what == 'drop' then
  if state == 'lead' and holder == owner then redis.call('HDEL', key, 'state', 'until', 'owner') end
elseif what == 'plain' then
  keep('plain', ms, '0')
elseif what == 'warm' then
  keep('warm', ms, long)
  redis.call('HSET', key, 'last', now)
end
return { 'ok', 0, gap, is_long }
