"use strict";
// Shows what /dashboard/live tells. Everything from outside goes in as text, never as markup.
const $ = (id) => document.getElementById(id);
let key = sessionStorage.getItem("waybill-key") || "";
let span = "minutes";
let last = null;

const el = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children.filter((c) => c !== null && c !== undefined).map((c) => (c instanceof Node ? c : String(c))));
  return node;
};
const fill = (id, ...children) => $(id).replaceChildren(...children);
const n = (v) => (v === null || v === undefined ? "-" : Number(v).toLocaleString("en"));
const usd = (v) => { if (v === null || v === undefined) return "-"; const a = Math.abs(v); return (v < 0 ? "-$" : "$") + (a >= 100 ? a.toFixed(0) : a >= 0.01 ? a.toFixed(2) : a < 1e-9 ? "0" : a.toFixed(2 - Math.ceil(Math.log10(a)) + 1).replace(/0+$/, "")); };
const pct = (v) => (v === null || v === undefined ? "-" : Math.round(v * 100) + " %");
const secs = (v) => (v === null || v === undefined ? "-" : v < 10 ? v.toFixed(1) + " s" : v < 120 ? Math.round(v) + " s" : v < 7200 ? Math.round(v / 60) + " min" : (v / 3600).toFixed(1) + " h");
const clock = (iso) => new Date(iso).toLocaleTimeString("en-GB");
const sum = (rows, name) => rows.reduce((total, row) => total + (row[name] || 0), 0);

function table(heads, rows, empty) {
  if (!rows.length) return el("p", { className: "empty" }, empty);
  const body = el("tbody");
  for (const row of rows) {
    const tr = el("tr", { className: row.why ? "has-why" : "" });
    row.cells.forEach((cell, i) => {
      const td = cell instanceof HTMLTableCellElement ? cell : el("td", {}, cell);
      td.dataset.l = heads[i];
      tr.append(td);
    });
    body.append(tr);
    if (row.why) { const td = el("td", { colSpan: heads.length }, row.why); body.append(el("tr", { className: "why" }, td)); }
  }
  return el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((h) => el("th", { scope: "col" }, h)))), body);
}
const loud = (v, bad) => el("td", { className: bad ? "loud" : "" }, v);
const extraOf = (d) => { const more = d.usd - d.instead_of_usd; return Math.abs(more) < 1e-4 ? "0" : loud(usd(more), more > 0); };
const CAUSES = {
  lane_held: "batch work with time, which waits up to half an hour rather than pay for a dearer model",
  overloaded: "refused by the provider, tried again later",
  waiting_for_quota: "the limits admit no more now",
  budget_exhausted: "the budget is spent",
  budget_busy: "the budget is reserved by calls under way",
  behind: "queued behind them",
};
const waits = (w) => w.model ? `${n(w.jobs)} wait for ${w.model}: ${CAUSES[w.cause] || (w.cause || "until their time").replaceAll("_", " ")}` : `${n(w.jobs)} ${CAUSES[w.cause]}`;
const jobLink = (id) => { const b = el("button", { type: "button", title: "why " + id }, id.slice(0, 13)); b.onclick = () => why(id); return b; };

function show(s) {
  last = s;
  const out = s.lanes.filter((l) => l.state !== "closed" && l.state !== "unknown");
  const waiting = sum(s.intents, "queued") + sum(s.intents, "routed") + sum(s.intents, "parked");
  const oldest = Math.max(0, ...s.intents.map((i) => i.oldest_s || 0));
  const banners = [];
  if (s.ledger) banners.push("The ledger does not answer; nothing is lost, nothing can be accepted. Below is what was seen last. " + s.ledger);
  if (s.redis) banners.push("Redis is away: jobs wait on the ledger and go on when it is back; breakers and headroom are unknown. " + s.redis);
  for (const h of s.holds) banners.push(`${h.kind} ${h.name} is ${h.kind === "provider" ? "drained" : "paused"} by a person: ${h.reason}`);
  for (const a of s.accounts) banners.push(`account ${a.account} is refused (${a.state}): ${a.reason}`);
  if (s.housekeeping.silent_s > 60) banners.push(`control has been silent for ${secs(s.housekeeping.silent_s)}: parked jobs and lost workers wait`);
  fill("banners", ...banners.map((b) => el("div", { className: "banner", role: "alert" }, b)));
  const open = out.filter((l) => l.state === "open").length;
  const v = $("verdict");
  v.className = s.ledger || s.redis ? "bad" : out.length ? (open ? "bad" : "warn") : "good";
  v.textContent = s.ledger ? "The ledger is away" : s.redis ? "Redis is away" : out.length ? `${out.length} of ${s.lanes.length} lanes are out or coming back: ${out.map((l) => l.lane.split("/")[1]).join(", ")}` : "All lanes are well";
  const day = s.hours.slice(-24);
  const spent = sum(day, "usd"), flag = sum(day, "flagship_usd"), hour = sum(s.minutes, "usd");
  const answered = sum(day, "answered"), weak = sum(day, "weak");
  const graded = Object.values(s.grades);
  const mean = graded.length ? sum(graded.map((g) => ({ x: g.mean * g.grades })), "x") / sum(graded, "grades") : null;
  const tile = (value, what, bad) => el("div", { className: "tile" }, el("b", { className: bad ? "loud" : "" }, value), el("span", {}, what));
  fill("tiles",
    tile(n(waiting), `jobs wait, the oldest ${secs(oldest)}`), tile(n(sum(s.intents, "running")), "run now"),
    tile(usd(hour), "spent in the last hour"),
    tile(flag ? pct(1 - spent / flag) : "-", `saved in 24 h: ${usd(spent)} instead of ${usd(flag)} on the flagship`),
    tile(answered + weak ? pct(answered / (answered + weak)) : "-", "good enough as they came, 24 h"),
    tile(mean === null ? "no grades" : pct(mean), "mean grade, 24 h"),
    tile(n(s.dead), "dead letters", s.dead > 0));
  fill("lanes", table(["lane", "state", "headroom", "in flight", "answered", "429", "failed", "median"], s.lanes.map((l) => ({
    cells: [l.lane, el("td", { className: "state " + l.state }, l.state.replace("_", " ") + (l.out_s ? ` ${secs(l.out_s)}` : "")),
      l.headroom === null ? "-" : el("td", {}, el("meter", { min: 0, max: 1, low: 0.1, value: l.headroom, title: pct(l.headroom) }), " " + pct(l.headroom)),
      n(l.in_flight), n(l.answered), loud(n(l.throttled), l.throttled > 0), loud(n(l.failed), l.failed > 0), secs(l.median_s)],
    why: l.state === "closed" ? "" : l.reason })), "No call was made yet."));
  const lost = s.waiting_for.filter((w) => w.jobs);
  const queued = sum(s.intents, "queued");
  if (queued && lost.some((w) => w.cause === "lane_held")) lost.push({ jobs: queued, cause: "behind" });
  fill("detours", table(["instead of", "went to", "jobs", "cost", "on its own lane", "extra"], s.detours.map((d) => ({
    cells: [d.from, el("td", { className: "text" }, d.to), n(d.jobs), usd(d.usd), usd(d.instead_of_usd), d.instead_of_usd === null ? "-" : extraOf(d)] })),
    "Every job went where its policy sends it."), ...lost.map((w) => el("p", {}, waits(w))));
  const known = s.detours.filter((d) => d.instead_of_usd !== null), extra = sum(known, "usd") - sum(known, "instead_of_usd");
  $("extra").textContent = s.detours.length ? `${n(sum(s.detours, "jobs"))} jobs, ${extra < 0 ? "saved" : "extra"} ${usd(Math.abs(extra))}` : "";
  fill("intents", table(["intent", "queued", "on the way", "parked", "running", "oldest", "done", "failed", "p95", "USD/h", "escalated", "grade"], s.intents.map((i) => ({
    cells: [i.intent, n(i.queued), n(i.routed), n(i.parked), n(i.running), secs(i.oldest_s), n(i.succeeded), loud(n(i.failed), i.failed > 0), secs(i.p95_s), usd(i.usd_per_hour), pct(i.escalated), s.grades[i.intent] ? pct(s.grades[i.intent].mean) : "-"] })), "No job was submitted yet."));
  fill("changes", ...(s.route_changes.length ? s.route_changes.map((c) => el("li", {}, el("time", { dateTime: c.at }, clock(c.at)), jobLink(c.job_id), ` ${c.outcome}: ${c.reason}`)) : [el("li", { className: "empty" }, "none")]));
  fill("notes", ...(s.notes.length ? s.notes.map((m) => el("li", {}, el("time", { dateTime: m.at }, clock(m.at)), `${m.what}: ${m.before.replace("_", " ")} → ${m.state.replace("_", " ")}${m.reason ? ", " + m.reason : ""}${m.probes ? `; probed in vain ${n(m.probes)} ×, the last at ${clock(m.probed_at)}` : ""}`)) : [el("li", { className: "empty" }, "no lane or service changed")]));
  fill("runs", table(["run", "state", "progress", "done", "failed", "spent", "on the flagship"], s.runs.map((r) => {
    const done = r.succeeded + r.failed + r.cancelled;
    return { cells: [r.name || r.id.slice(0, 8), r.state === "open" ? (done >= r.jobs ? "done" : "open") : r.state, el("td", {}, el("progress", { max: Math.max(1, r.jobs), value: done, title: `${done} of ${r.jobs}` })), `${n(done)} of ${n(r.jobs)}`, loud(n(r.failed), r.failed > 0), usd(r.usd), usd(r.flagship_usd)] };
  }), "No run yet."));
  fill("batches", table(["batch", "provider", "state", "rows", "without answer", "since"], s.batches.map((b) => ({
    cells: [b.provider_id || b.id, el("td", { className: "text" }, `${b.provider} ${b.model}`), (b.is_cancelled ? "cancelled, " : "") + b.state.replaceAll("_", " "), n(b.rows), n(b.open_rows), secs(b.age_s)],
    why: b.error })), "No batch is at a provider."));
  $("flagship").textContent = s.flagship;
  $("foot").textContent = `${clock(s.at)}, policy ${s.policy}; rung again ${n(s.housekeeping.rerung)}, lost workers ${n(s.housekeeping.rescued)}`;
  $("flower").hidden = !s.flower;
  if (s.flower) $("flower").href = s.flower;
  draw(s);
}

function draw(s) {
  const rows = s[span], svg = $("money");
  const W = Math.max(300, svg.clientWidth), H = 240, L = 52, B = 34;
  const mk = (tag, attrs, text) => { const e = document.createElementNS("http://www.w3.org/2000/svg", tag); for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v); if (text !== undefined) e.textContent = text; return e; };
  svg.setAttribute("viewBox", `0 0 ${W} ${H}`); svg.replaceChildren();
  const step = span === "minutes" ? 60e3 : 3600e3, count = span === "minutes" ? 60 : 48;
  const end = Math.floor(new Date(s.at).getTime() / step) * step, start = end - (count - 1) * step;
  const top = Math.max(1e-9, ...rows.map((r) => Math.max(r.usd, r.flagship_usd))), most = Math.max(1, ...rows.map((r) => r.failed));
  const x = (t) => L + ((t - start) / step) * ((W - L - 6) / count), y = (v) => H - B - (v / top) * (H - B - 10), w = (W - L - 6) / count;
  for (const share of [0, 0.5, 1]) { svg.append(mk("line", { x1: L, x2: W, y1: y(top * share), y2: y(top * share) }), mk("text", { x: 0, y: y(top * share) + 4 }, usd(top * share))); }
  const by = new Map(rows.map((r) => [new Date(r.at).getTime(), r]));
  let flag = "", good = "";
  for (let t = start; t <= end; t += step) {
    const r = by.get(t) || { usd: 0, flagship_usd: 0, failed: 0, answered: 0, weak: 0 };
    svg.append(mk("rect", { class: "spent", x: x(t) + 1, y: y(r.usd), width: Math.max(1, w - 2), height: H - B - y(r.usd) }));
    if (r.failed) svg.append(mk("rect", { class: "fail", x: x(t) + 1, y: H - B + 2, width: Math.max(1, w - 2), height: 3 + (r.failed / most) * 9 }));
    flag += `${flag ? "L" : "M"}${x(t)} ${y(r.flagship_usd)}L${x(t) + w} ${y(r.flagship_usd)}`;
    if (r.answered + r.weak) good += `${good ? "L" : "M"}${x(t) + w / 2} ${10 + (1 - r.answered / (r.answered + r.weak)) * (H - B - 10)}`;
  }
  svg.append(mk("path", { class: "flag", d: flag }), mk("path", { class: "good-line", d: good || "M0 0" }));
  svg.append(mk("text", { x: L, y: H - 3 }, clock(start).slice(0, 5)), mk("text", { x: W - 34, y: H - 3 }, clock(end).slice(0, 5)));
  $("sum").textContent = `${usd(sum(rows, "usd"))} spent, ${usd(sum(rows, "flagship_usd"))} on the flagship, ${n(sum(rows, "failed"))} failed calls`;
}

async function ask(path) {
  const answer = await fetch(path, { headers: key ? { authorization: "Bearer " + key } : {} });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  const failure = new Error((body.error && body.error.message) || `HTTP ${answer.status}`);
  failure.status = answer.status;
  throw failure;
}

async function listen() {
  try {
    const answer = await ask("/dashboard/live");
    $("login").hidden = true;
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      rest += value;
      let cut;
      while ((cut = rest.indexOf("\n\n")) >= 0) {
        const data = rest.slice(0, cut).split("\n").find((line) => line.startsWith("data: "));
        rest = rest.slice(cut + 2);
        if (data) show(JSON.parse(data.slice(6)));
      }
    }
    throw new Error("the gateway ended the connection");
  } catch (failure) {
    if (failure.status === 401 || failure.status === 403) { $("refused").textContent = failure.message; $("login").hidden = false; $("key").focus(); $("verdict").textContent = "a key is needed"; return; }
    const v = $("verdict"); v.className = "bad"; v.textContent = "not connected, trying again: " + failure.message;
    setTimeout(listen, 2000);
  }
}

async function why(id) {
  $("story-title").textContent = "Why " + id; $("story-text").textContent = "reading";
  if (!$("story").open) $("story").showModal();
  try { const s = await (await ask("/dashboard/jobs/" + encodeURIComponent(id))).json(); $("story-title").textContent = `${s.id}: ${s.state}`; $("story-text").textContent = s.story; } catch (failure) { $("story-text").textContent = failure.message; }
}

$("login").addEventListener("submit", (e) => { e.preventDefault(); key = $("key").value.trim(); sessionStorage.setItem("waybill-key", key); $("key").value = ""; listen(); });
$("search").addEventListener("submit", (e) => { e.preventDefault(); const id = $("job").value.trim(); if (id) why(id); });
function theme(next) { const root = document.documentElement; if (next === "auto") delete root.dataset.theme; else root.dataset.theme = next; localStorage.setItem("waybill-theme", next); $("theme").textContent = "Theme: " + next; }
const turn = () => theme({ auto: "light", light: "dark", dark: "auto" }[localStorage.getItem("waybill-theme") || "auto"]);
$("theme").addEventListener("click", turn);
document.querySelectorAll("[data-span]").forEach((b) => b.addEventListener("click", () => { span = b.dataset.span; document.querySelectorAll("[data-span]").forEach((o) => o.setAttribute("aria-pressed", String(o === b))); if (last) draw(last); }));
document.addEventListener("keydown", (e) => { if (e.target instanceof HTMLInputElement || e.ctrlKey || e.metaKey || e.altKey) return; if (e.key === "/") { e.preventDefault(); $("job").focus(); } else if (e.key === "t") turn(); });
addEventListener("resize", () => { if (last) draw(last); });
theme(localStorage.getItem("waybill-theme") || "auto");
listen();
