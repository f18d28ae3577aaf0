// Shows the state that the server sends, and asks for what buttons say. All text is put in as text,
// never as markup: names may come from inside of pods.
"use strict";

const secret = localStorage.getItem("autopod-secret") || "";
const isAdmin = localStorage.getItem("autopod-role") === "admin";
let latest = null;
let cpuBefore = null;
const shares = new Map();
let planJob = null;

// --- text and elements -------------------------------------------------------------------

const byId = (id) => document.getElementById(id);

function el(tag, attributes = {}, ...children) {
  const made = tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((one) => one !== null && one !== undefined));
  return made;
}

const pill = (text, kind = "") => el("span", { class: `pill ${kind}` }, text);
const quiet = (text) => el("span", { class: "quiet" }, text);
const name = (text) => el("bdi", {}, text);
const list = (texts) => el("ul", {}, texts.map((text) => el("li", {}, name(text))));

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${unit === 0 || count >= 100 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

function duration(seconds) {
  seconds = Math.max(0, seconds);
  if (seconds < 10 && seconds % 1) return `${seconds.toFixed(1)} s`;
  const sizes = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  let left = Math.round(seconds);
  const parts = [];
  for (const [size, unit] of sizes) {
    if (left >= size || (size === 1 && !parts.length)) parts.push(`${Math.floor(left / size)} ${unit}`);
    left %= size;
    if (parts.length === 2) break;
  }
  return parts.join(" ");
}

const moment = (seconds) =>
  new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });

// --- drawing a part again only where it has changed, and keeping the keyboard where it was ------

const drawn = new Map();

function draw(id, data, make) {
  const text = JSON.stringify(data);
  if (drawn.get(id) === text) return;
  drawn.set(id, text);
  const place = byId(id);
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const open = new Set([...place.querySelectorAll("details[open]")].map((one) => one.dataset.key));
  place.replaceChildren(...[make(data)].flat().filter((one) => one !== null));
  for (const one of place.querySelectorAll("details")) one.open = open.has(one.dataset.key);
  if (focused) place.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

// --- the host ------------------------------------------------------------------------------

function verdict(host) {
  if (host.level === null) return ["", "Nothing was asked yet", "The service looks at intervals."];
  if (host.unknown !== null) return ["bad", "Unknown", host.unknown];
  if (host.kernel === null) return ["bad", "Unknown", "Which kernel runs cannot be told."];
  if (host.reboot.length) return ["bad", "A reboot is needed", null];
  if (host.level === "restart") return ["warn", "Programs are to be restarted", null];
  if (host.updates.length) return ["warn", "Updates are to be installed", null];
  if (host.faults.length) return ["warn", "The host has faults", null];
  return ["good", "All is well", "Nothing waits to be installed."];
}

function drawHost({ host, at }) {
  const [kind, headline, more] = verdict(host);
  byId("host").className = `card wide ${kind}`;
  const kernel = host.kernel;
  const same = kernel && (kernel.expected === null || kernel.expected === kernel.running);
  const facts = [
    ["Kernel that runs", kernel ? kernel.running : "unknown", kernel && !host.reboot.length ? "good" : "bad"],
    ["The next boot brings", kernel ? kernel.expected || "no packaged kernel" : "unknown", same ? "" : "good"],
    ["Last look", host.reported ? `${duration(Math.round(at - host.reported))} ago` : "never", ""],
    ["The service", host.hold !== null ? "is held" : host.enabled ? "acts by itself" : "reports only", host.hold !== null ? "bad" : ""],
  ];
  return [
    el("h2", { id: "host-title" }, headline),
    more ? el("p", {}, more) : null,
    host.hold !== null
      ? el("p", {}, pill("held", "warn"), " ", name(host.hold), host.held_by_hand ? "" : quiet(" (act.hold in autopod.toml)"))
      : null,
    el("dl", { class: "facts" }, facts.map(([term, said, look]) =>
      el("div", {}, el("dt", {}, term), el("dd", { class: look }, name(said))))),
    host.reboot.length || host.against.length
      ? el("div", { class: "why" },
        el("div", {}, el("h3", {}, "Why"), list(host.reboot)),
        host.against.length
          ? el("div", {}, el("h3", {}, "Why the service does not do it now"), list(host.against))
          : null)
      : null,
  ];
}

function drawActs({ host, phase, draining, failed }) {
  if (!isAdmin) return quiet("This session may look, and no more.");
  const button = (key, text, act, look = "") =>
    el("button", { type: "button", class: look, "data-key": key, onclick: act }, text);
  return [
    ["returning", "undoing"].includes(phase) ? null
      : draining ? button("undo", "Call the drain off…", askUndo, "danger")
      : button("drain", "Drain…", askDrain, "first"),
    host.held_by_hand
      ? button("unhold", "End the hold", () => quickly({ do: "unhold" }))
      : button("hold", "Hold…", askHold),
    button("look", "Look now", () => quickly({ do: "look" })),
    failed && !draining
      ? button("clear", "Let the service act again…", askClear)
      : null,
  ];
}

// --- pods ----------------------------------------------------------------------------------

const STATES = { running: "good", stopped: "", unmounted: "", leaving: "link" };

function processors(state) {
  const before = cpuBefore;
  const passed = before ? state.at - before.at : 0;
  if (before && passed < 1) return;
  cpuBefore = { at: state.at, of: new Map(state.pods.map((pod) => [pod.pod, pod.cpu_s])) };
  shares.clear();
  for (const pod of state.pods) {
    const was = before?.of.get(pod.pod) ?? null;
    if (pod.cpu_s !== null && was !== null) {
      shares.set(pod.pod, Math.max(0, (100 * (pod.cpu_s - was)) / passed));
    }
  }
}

function software(pod) {
  if (pod.unknown !== null) return [pill("unknown"), quiet(pod.unknown)];
  if (!pod.updates.length) return [quiet("none known")];
  return el("details", { "data-key": `software ${pod.pod}` },
    el("summary", {}, pill(`${pod.updates.length} to update`, "warn")),
    el("ul", {}, pod.updates.map((one) => el("li", {}, name(one.package), " ",
      el("span", { class: "mono quiet" }, name(`${one.installed || "-"} → ${one.candidate}`))))));
}

function drawPods({ pods, hosts, at }) {
  if (!pods.length) return el("p", { class: "quiet" }, "There is no pod on this host.");
  const canMove = isAdmin && hosts.length > 0;
  const heads = ["Pod", "State", "Running for", "Memory", "Processor", "Updates inside", "Kept checkpoints"];
  const row = (pod) => {
    const cells = [
      [el("strong", {}, name(pod.pod)), pod.address ? quiet(pod.address) : null,
        pod.problem ? quiet(pod.problem) : null],
      [pill(pod.state, STATES[pod.state] || ""), pod.held ? " " : null, pod.held ? pill("held", "warn") : null,
        pod.processes ? quiet(pod.processes === 1 ? "1 process" : `${pod.processes} processes`) : null],
      [pod.since === null ? "–" : duration(Math.round(at - pod.since))],
      [pod.processes ? bytes(pod.memory_bytes) : "–"],
      [pod.share === null ? "–" : `${pod.share.toFixed(pod.share < 10 ? 1 : 0)} %`],
      [software(pod)],
      [pod.kept ? `${pod.kept}` : "–", pod.newest ? quiet(`newest ${duration(at - pod.newest)} ago`) : null],
    ];
    return el("tr", {}, cells.map((cell, i) =>
      el("td", { "data-label": heads[i], class: i > 1 && i < 5 ? "number" : null }, el("div", {}, cell.flat()))),
    el("td", { class: "act", "data-label": "" }, canMove && pod.state === "running"
      ? el("button", { type: "button", class: "small", "data-key": `move ${pod.pod}`, "aria-label": `Move pod ${pod.pod}`, onclick: () => askMove(pod.pod) }, "Move…")
      : ""));
  };
  return el("table", { class: "pods" },
    el("thead", {}, el("tr", {}, heads.map((head, i) =>
      el("th", { scope: "col", class: i > 1 && i < 5 ? "number" : null }, head)), el("th", { "aria-label": "Actions" }))),
    el("tbody", {}, pods.map(row)));
}

// --- updates, faults, hosts, notices -----------------------------------------------------

const LEVELS = { reboot: ["reboot", "bad"], restart: ["restart", "warn"], none: ["install only", ""] };

function drawUpdates(host) {
  if (host.level === null || host.unknown !== null) {
    return el("p", { class: "quiet" }, "It is not known what is to be installed.");
  }
  if (!host.updates.length) return el("p", {}, "There are none.");
  return el("div", { class: "scroll", tabindex: "0" }, el("table", {},
    el("thead", {}, el("tr", {}, ["Package", "Needs"].map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, host.updates.map((one) => el("tr", {},
      el("td", {}, el("strong", {}, name(one.package)),
        el("span", { class: "quiet mono" }, name(`${one.installed || "new"} → ${one.candidate}`)),
        one.advisories.length ? quiet(one.advisories.join(" ")) : null),
      el("td", {}, pill(...LEVELS[one.level]), one.kept ? pill("kept back", "warn") : null,
        el("span", { class: "quiet" }, name(one.reason))))))));
}

function drawFaults({ faults, absent }) {
  const found = faults.length
    ? el("ul", {}, faults.map((one) => el("li", {}, pill(one.kind, "bad"), " ", name(`${one.subject}: ${one.text}`))))
    : el("p", {}, "There are none.");
  return [found, absent.length
    ? el("details", { "data-key": "absent" }, el("summary", { class: "quiet" }, `not looked at: ${absent.length}`), list(absent))
    : null];
}

function drawHosts(hosts) {
  if (!hosts.length) return el("p", { class: "quiet" }, "This host has no name, and knows no other.");
  return el("ul", {}, hosts.map((one) => el("li", {}, el("strong", {}, name(one.host)), one.own ? " (this one) " : " ",
    el("span", { class: "quiet" }, `${one.address} · key ${one.key.slice(0, 16)}`))));
}

function drawWaiting(waiting) {
  if (!waiting.length) return null;
  return [el("h2", {}, "Notices on their way"), el("ul", {}, waiting.map((one) => el("li", {}, name(one.receiver), ": ",
    name(one.notice.text), el("span", { class: "quiet" }, ` ${one.tries} tries; ${one.failed || "not tried yet"}`))))];
}

// --- moves and drains ----------------------------------------------------------------------

const STEPS = ["begin", "pre-flight", "layers", "file system", "memory, while it runs", "memory", "send", "restart", "release"];
const PHASES = ["stopping", "installing", "confirming", "rebooting", "returning", "done"];
const BY_HAND = ["stopping", "installing", "confirming", "ready"];
const PLACES = { here: ["runs", "good"], ended: ["has ended", ""], archive: ["on disk", "link"], moved: ["moved", "link"],
  back: ["runs again", "good"], lost: ["did not come back", "bad"] };

function drawMoves({ moves, drain, draining, at }) {
  const parts = moves.map((one) => el("div", {},
    el("p", {}, el("strong", {}, name(one.pod)), one.host ? [" moves to ", el("strong", {}, name(one.host))] : " comes here",
      ": ", name(one.step), quiet(` ${one.done_bytes ? `${bytes(one.done_bytes)} sent` : ""}${one.began ? `, ${duration(at - one.began)}` : ""}`)),
    STEPS.includes(one.step)
      ? el("progress", { max: STEPS.length, value: STEPS.indexOf(one.step) + 1, "aria-label": `Move of ${one.pod}` })
      : el("progress", { "aria-label": `Move of ${one.pod}` })));
  if (draining) parts.push(drawDrain(drain));
  return parts;
}

function drawDrain(drain) {
  const steps = drain.phase === "undoing" ? ["undoing", "done"]
    : drain.phase === "asking" ? ["asking", ...PHASES]
    : drain.automatic || ["rebooting", "returning"].includes(drain.phase) ? PHASES : BY_HAND;
  const now = steps.indexOf(drain.phase);
  const into = drain.expected ? `, into ${drain.expected}` : "";
  const meaning = { ready: `ready: the host can be rebooted${into}`, undoing: "pods are brought back" };
  return el("div", {},
    el("p", {}, el("strong", {}, `Drain ${drain.id}`), quiet(` ${drain.automatic ? "by the service" : "by hand"}`)),
    el("ol", { class: "steps", "aria-label": "Steps of the drain" }, steps.map((step, i) =>
      el("li", { class: i < now ? "past" : i === now ? "now" : "", "aria-current": i === now ? "step" : null }, meaning[step] || step))),
    drain.failed ? el("p", {}, pill("failed", "bad"), " ", name(drain.failed)) : null,
    chips(drain));
}

const chips = (drain) => el("div", { class: "chips" }, drain.pods.map((one) => {
  const [text, kind] = PLACES[one.place];
  return el("span", {}, pill(`${one.pod}: ${text}${one.host ? ` to ${one.host}` : ""}`, kind), one.why ? quiet(one.why) : null);
}));

// --- the timeline ----------------------------------------------------------------------------

// Seconds beside hours: widths grow with the square root of a time, and the times are printed.
function scale(spans, now, from, to) {
  const marks = [...new Set(spans.flatMap((one) => [one.begins, one.ends ?? now]))].sort((a, b) => a - b);
  const sizes = marks.slice(1).map((mark, i) => Math.sqrt(mark - marks[i]) + 0.05);
  const total = sizes.reduce((sum, size) => sum + size, 0) || 1;
  const at = new Map([[marks[0], from]]);
  let x = from;
  sizes.forEach((size, i) => { x += ((to - from) * size) / total; at.set(marks[i + 1], x); });
  return { marks, x: (mark) => at.get(mark) };
}

function drawTimeline({ spans, drain, now }) {
  const rows = [...new Set(spans.map((one) => one.row))];
  const [left, width, tall, top] = [110, 1000, 30, 24];
  const time = scale(spans, now, left, width - 12);
  const height = top + rows.length * tall + 8;
  const drawing = el("svg:svg", { class: "timeline", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": story(spans, now) });
  let free = 0;
  for (const mark of time.marks) {
    const x = time.x(mark);
    drawing.append(el("svg:line", { x1: x, x2: x, y1: top - 4, y2: height - 6 }));
    if (x >= free || mark === time.marks[0]) {
      const last = x > width - 70;
      drawing.append(el("svg:text", { x, y: 13, class: "quiet", "text-anchor": last ? "end" : "start" }, clock(mark)));
      free = x + 66;
    }
  }
  rows.forEach((row, i) => {
    const y = top + i * tall;
    drawing.append(el("svg:text", { x: 0, y: y + 18 }, row || "this host"));
    for (const one of spans.filter((span) => span.row === row)) drawing.append(bar(one, time, y, now));
  });
  const outcome = drain.phase === "failed" ? el("p", {}, pill("failed", "bad"), " ", name(drain.failed || ""))
    : drain.phase === "put off" ? el("p", {}, pill("put off", "warn"), " ", name(drain.put_off || ""))
    : drain.phase === "done" ? el("p", {}, pill("done", "good"), " ", chipsText(drain)) : null;
  return [outcome, el("div", { class: "wide-scroll", tabindex: "0" }, drawing), el("p", { class: "quiet" },
    `Drain ${drain.id}, ${moment(time.marks[0])}. Longer stretches are drawn shorter: their times are printed.`)];
}

const chipsText = (drain) => name(drain.pods.map((one) => `${one.pod} ${PLACES[one.place][0]}`).join(", "));

function bar(one, time, y, now) {
  const x = time.x(one.begins);
  const wide = Math.max(3, time.x(one.ends ?? now) - x);
  const lasted = duration((one.ends ?? now) - one.begins);
  const what = PLACES[one.what] ? PLACES[one.what][0] : one.what;
  const label = `${what} ${lasted}`;
  const group = el("svg:g", {}, el("svg:title", {}, `${one.row || "this host"}: ${label}`),
    el("svg:rect", { x, y: y + 3, width: wide, height: 22, rx: 4, class: `t-${one.what}` }));
  const text = [label, what].find((words) => words.length * 7 + 10 < wide);
  if (text) group.append(el("svg:text", { x: x + 6, y: y + 18, class: "on" }, text));
  return group;
}

function story(spans, now) {
  return spans.map((one) => `${one.row || "host"} ${one.what} ${duration((one.ends ?? now) - one.begins)}`).join(", ");
}

// --- history and commands ------------------------------------------------------------------

const KINDS = { alert: "bad", drain: "link", pod: "", hold: "warn", notify: "warn" };

function happened({ text, drain }) {
  return el("bdi", { title: drain ? `drain ${drain}` : null }, text);
}

function drawHistory(events) {
  if (!events.length) return el("p", { class: "quiet" }, "Nothing has happened yet.");
  return el("ol", { class: "events" }, [...events].reverse().map((one) => el("li", {},
    el("time", { datetime: one.at, title: moment(Date.parse(one.at) / 1000) },
      new Date(one.at).toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false })),
    pill(one.kind, KINDS[one.kind] || ""), happened(one))));
}

function drawJobs(jobs) {
  if (!jobs.length) return el("p", { class: "quiet" }, "None.");
  return [...jobs].reverse().map((job) => el("div", {},
    el("p", {}, el("code", {}, name(job.words.join(" "))), " ",
      job.ended === null ? pill("runs", "link") : job.status === 0 ? pill("done", "good") : pill(`exit status ${job.status}`, "bad"),
      quiet(` ${clock(job.began)}`)),
    job.said ? el("pre", {}, job.said) : null));
}

// --- asking ----------------------------------------------------------------------------------

function headers() {
  return { "X-Autopod-Secret": secret };
}

function logIn(how = "") {
  localStorage.removeItem("autopod-secret");
  location.replace(`/login${how}`);
}

async function act(action) {
  const answer = await fetch("/api/act", {
    method: "POST",
    headers: { ...headers(), "Content-Type": "application/json" },
    body: JSON.stringify(action),
  });
  if (answer.status === 401) logIn();
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return said.job;
}

function quickly(action) {
  act(action).catch((error) => ask("That was refused", el("p", {}, error.message), "Close", () => true));
}

const dialog = byId("dialog");
let whenYes = null;

function ask(title, body, yes, then) {
  byId("dialog-title").textContent = title;
  byId("dialog-body").replaceChildren(...[body].flat());
  byId("dialog-said").textContent = "";
  const button = byId("dialog-yes");
  button.textContent = yes;
  button.disabled = false;
  whenYes = then;
  if (!dialog.open) dialog.showModal();
}

byId("dialog-yes").addEventListener("click", async () => {
  const button = byId("dialog-yes");
  button.disabled = true;
  byId("dialog-said").textContent = "";
  try {
    if ((await whenYes()) !== false) dialog.close();
  } catch (error) {
    byId("dialog-said").textContent = error.message;
    button.disabled = false;
  }
});
dialog.addEventListener("close", () => { planJob = null; });

function askHold() {
  const field = el("input", { id: "reason", maxlength: 200, required: true, autofocus: true });
  ask("Hold this host", [
    el("p", {}, "The service will not drain or reboot this host by itself until the hold is ended."),
    el("label", { for: "reason" }, "Why"), field,
  ], "Hold", () => act({ do: "hold", reason: field.value.trim() }));
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); byId("dialog-yes").click(); }
  });
}

async function askDrain() {
  ask("Drain this host", [el("p", {}, "Looking at what would be done; nothing is touched…"), el("progress", { "aria-label": "Looking" })],
    "Drain now", () => act({ do: "drain", plan: planJob }));
  byId("dialog-yes").disabled = true;
  try {
    planJob = await act({ do: "plan" });
  } catch (error) {
    byId("dialog-said").textContent = error.message;
  }
}

function showPlan(jobs) {
  const job = jobs.find((one) => one.number === planJob);
  if (!dialog.open || !job || job.ended === null || byId("plan")) return;
  byId("dialog-body").replaceChildren(
    el("p", {}, "This is what it would do. “against” is what keeps the service from doing it by itself; you may."),
    el("pre", { id: "plan", tabindex: "0" }, job.said || "Nothing is to be done: no pod runs, nothing is to be installed."),
    el("p", {}, "The pods stop until after the reboot, or until the drain is called off."));
  byId("dialog-yes").disabled = false;
}

function askUndo() {
  ask("Call the drain off", el("p", {}, "The pods that were written to disk run here again, without a reboot."),
    "Bring the pods back", () => act({ do: "undo" }));
}

function askClear() {
  ask("Let the service act again", el("p", {}, "The last drain has failed, and the service does nothing until somebody has looked."),
    "I have looked", () => act({ do: "clear" }));
}

function askMove(pod) {
  const hosts = latest.hosts.filter((one) => !one.own);
  const choice = el("select", { id: "target" }, hosts.map((one) => el("option", { value: one.host }, one.host)));
  ask(`Move ${pod}`, [
    el("p", {}, "Its files and memory go ahead while it runs; then it stands still until it lives there."),
    el("label", { for: "target" }, "To "), choice, " ",
    el("button", { type: "button", class: "small", onclick: () => act({ do: "migrate", pod, host: choice.value, trial: true }).then(() => dialog.close(), say) }, "Only ask whether it can"),
  ], "Move", () => act({ do: "migrate", pod, host: choice.value }));
}

function say(error) {
  byId("dialog-said").textContent = error.message;
}

// --- the stream --------------------------------------------------------------------------------

function show(state) {
  latest = state;
  processors(state);
  const pods = state.pods.map((pod) => ({ ...pod, share: shares.get(pod.pod) ?? null }));
  const others = state.hosts.filter((one) => !one.own);
  const minute = Math.round(state.at / 10) * 10;
  byId("name").textContent = state.host.name;
  document.title = `${state.host.name}: ${verdict(state.host)[1]}`;
  byId("problem").hidden = state.problem === null;
  byId("problem").textContent = state.problem || "";
  draw("verdict", { host: state.host, at: minute }, drawHost);
  draw("acts", { host: state.host, draining: state.draining, phase: state.drain?.phase ?? null, failed: state.drain?.failed ?? null }, drawActs);
  draw("pods", { pods, hosts: others, at: state.at }, drawPods);
  draw("updates", state.host, drawUpdates);
  draw("faults", { faults: state.host.faults, absent: state.host.absent }, drawFaults);
  draw("hosts", state.hosts, drawHosts);
  draw("waiting", state.waiting, drawWaiting);
  byId("moving").hidden = !state.moves.length && !state.draining;
  draw("moves", { moves: state.moves, drain: state.drain, draining: state.draining, at: state.moves.length ? state.at : 0 }, drawMoves);
  byId("drained").hidden = !state.timeline.length;
  if (state.timeline.length) {
    const now = Math.max(state.draining ? minute : 0, ...state.timeline.map((one) => one.ends ?? one.begins));
    draw("timeline", { spans: state.timeline, drain: state.drain, now }, drawTimeline);
  }
  draw("history", state.events, drawHistory);
  draw("jobs", state.jobs, drawJobs);
  showPlan(state.jobs);
}

function live(isLive) {
  const mark = byId("live");
  const text = isLive ? "live" : "connection lost";
  if (mark.textContent !== text) mark.textContent = text;
  mark.className = `pill ${isLive ? "good" : "bad"}`;
}

// Not EventSource: it cannot send the header that tells our page from others.
async function watch() {
  const answer = await fetch("/api/events", { headers: headers() });
  if (answer.status === 401) logIn();
  if (!answer.ok) throw new Error((await answer.json()).error);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  live(true);
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.split("\n").find((line) => line.startsWith("data: "));
      if (data) show(JSON.parse(data.slice(6)));
    }
  }
}

async function keepWatching() {
  for (let pause = 1000; ; pause = Math.min(2 * pause, 30000)) {
    try {
      await watch();
      pause = 1000;
    } catch (error) {
      console.warn(error);
    }
    live(false);
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

// --- the head of the page -------------------------------------------------------------------------

function theme(next) {
  if (next) localStorage.setItem("autopod-theme", next);
  const chosen = localStorage.getItem("autopod-theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
}

byId("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  theme(dark ? "light" : "dark");
});
byId("leave").addEventListener("click", async () => {
  await fetch("/logout", { method: "POST", headers: headers() });
  logIn("#again");
});
theme(null);
keepWatching();
