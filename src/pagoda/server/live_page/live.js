// Draws what /live/events tells, an event a second. A key, where one is asked for, stays in this tab's session storage.
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const MAP_HEIGHT = 150;
let key = sessionStorage.getItem("pagoda-key") || "";
let shown = null;
let model = new URLSearchParams(location.hash.slice(1)).get("model"); // of several; null: the one used last
let watching = new AbortController();
const of = () => (model === null ? "" : `?model=${encodeURIComponent(model)}`);

const headers = () => (key ? { Authorization: `Bearer ${key}` } : {});
const count = (n) => Math.round(n).toLocaleString("en");
const ms = (s) => (s === null || s === undefined ? "–" : s < 1 ? `${(1000 * s).toPrecision(3)} ms` : `${s.toFixed(2)} s`);
const percent = (x) => `${(100 * x).toFixed(x < 0.1 ? 1 : 0)} %`;
const hue = (place) => (205 + place * 137.5) % 360; // golden angle: neighbours differ

function usd(x) {
  if (x === null || x === undefined) return "–";
  const size = Math.abs(x);
  return `$${size >= 0.01 || x === 0 ? x.toFixed(2) : size >= 1e-4 ? x.toFixed(5) : x.toExponential(1)}`;
}

function link(text, state) {
  $("link").textContent = text;
  $("link").className = state;
}

async function watch() {
  let response;
  watching = new AbortController();
  const { signal } = watching;
  try {
    response = await fetch(`live/events${of()}`, { headers: headers(), signal });
  } catch {
    return signal.aborted || again();
  }
  if (response.status === 401 || response.status === 403) {
    const body = await response.json().catch(() => null);
    return askForKey(body ? body.error.message : "");
  }
  if (response.status === 404) return link((await response.json()).error.message, "off"); // and will stay so
  if (!response.ok) return again();
  $("ask").hidden = true;
  $("page").hidden = false;
  link("live", "on");
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      text += value;
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events) if (event.startsWith("data: ")) draw(JSON.parse(event.slice(6)));
    }
  } catch { /* the connection broke: tried again below */ }
  if (!signal.aborted) again();
}

function choose(name) {
  model = name;
  location.hash = `model=${encodeURIComponent(name)}`;
  watching.abort();
  watch();
}

function again() {
  link("not connected, trying again", "off");
  setTimeout(watch, 2000);
}

function askForKey(why) {
  link("a key is needed", "off");
  $("page").hidden = true;
  $("ask").hidden = false;
  $("refusal").textContent = key ? why : "";
  $("key").focus();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  sessionStorage.setItem("pagoda-key", key);
  watch();
});

function draw(state) {
  shown = state;
  $("model").textContent = state.model;
  drawModels(state.models || []);
  $("page").hidden = !state.facts;
  $("away").hidden = Boolean(state.facts);
  if (!state.facts) return;
  $("situation").textContent = state.situation;
  $("sentence").textContent = state.sentence;
  $("alerts").replaceChildren(...state.alerts.map((text) => element("li", text)));
  drawTiles(state);
  drawRequests(state);
  drawBlocks(state);
  drawRoofline(state);
  drawFigures(state);
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function drawModels(models) {
  $("models").hidden = !models.length;
  $("models").replaceChildren(...models.map((one) => {
    const button = element("button", one.name, one.state);
    button.append(element("span", one.in_flight ? `${one.state}, ${one.in_flight} under way` : one.state));
    button.setAttribute("aria-pressed", one.chosen);
    button.addEventListener("click", () => choose(one.name));
    return button;
  }));
}

const TILES = [
  ["tokens/s", "tokens_s", (v) => count(v), (s) => s.facts.output_tokens / s.facts.seconds],
  ["prompt tokens/s", "prompt_tokens_s", (v) => count(v), (s) => s.facts.prompt_tokens / s.facts.seconds],
  ["TTFT", "ttft_ms", (v) => ms(v), (s) => s.facts.ttft_s],
  ["TPOT", "tpot_ms", (v) => ms(v), (s) => s.facts.tpot_s],
  ["running", "running", count, (s) => s.facts.num_running],
  ["waiting", "waiting", count, (s) => s.facts.num_waiting],
  ["KV held", "kv", percent, (s) => s.facts.kv_share],
  ["bandwidth used", "bytes_s", (v) => (v === null ? "–" : percent(v)), (s) => s.facts.bandwidth_share],
];

function drawTiles(state) {
  $("tiles").replaceChildren(...TILES.map(([label, line, show, value]) => {
    const tile = element("div", undefined, "tile");
    tile.append(element("b", show(value(state))), element("span", label), spark(state.lines[line] || []));
    return tile;
  }));
}

function spark(values) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 30");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const most = Math.max(...values, 1e-9);
  const points = values.map((v, i) => `${((100 * i) / Math.max(1, values.length - 1)).toFixed(2)} ${(29 - 27 * (v / most)).toFixed(2)}`);
  for (const [path, kind] of [[`M0 30L${points.join("L")}L100 30Z`, "fill"], [`M${points.join("L")}`, "line"]]) {
    const made = document.createElementNS(SVG, "path");
    made.setAttribute("d", path);
    made.setAttribute("class", kind);
    svg.append(made);
  }
  return svg;
}

function drawRequests(state) {
  const rows = state.requests.map((one, place) => {
    const row = document.createElement("tr");
    const swatch = element("i", undefined, "swatch");
    swatch.style.background = `hsl(${hue(place)} 55% 50%)`;
    const first = document.createElement("td");
    first.append(swatch);
    const id = element("td", one.id + (one.index ? `[${one.index}]` : ""), "id");
    id.title = [one.id, one.tenant && `tenant ${one.tenant}`, one.adapter && `adapter ${one.adapter}`,
      one.constrained && "obeys a grammar"].filter(Boolean).join(", ");
    const phase = document.createElement("td");
    phase.append(element("span", one.phase, `phase ${one.phase}`));
    const done = one.computed_tokens < one.prompt_tokens ? `${count(one.computed_tokens)} of ${count(one.prompt_tokens)}` : count(one.prompt_tokens);
    const last = document.createElement("td");
    last.append(stopButton(one.id));
    row.append(first, id, phase, ...[done, count(one.cached_tokens), count(one.output_tokens), ms(one.ttft_s),
      ms(one.tpot_s), usd(one.cost_usd)].map((text) => element("td", text, "n")), last);
    return row;
  });
  $("requests").replaceChildren(...rows);
  $("none").hidden = rows.length > 0;
  $("count").textContent = state.num_requests > rows.length ? `${rows.length} of ${state.num_requests}` : `${rows.length || ""}`;
}

function stopButton(id) {
  const button = element("button", "stop");
  button.setAttribute("aria-label", `stop request ${id}`);
  button.addEventListener("click", async () => {
    button.disabled = true;
    const body = JSON.stringify({ id });
    await fetch(`live/stop${of()}`, { method: "POST", body, headers: { ...headers(), "X-Pagoda-Live": "1" } }).catch(() => null);
  });
  return button;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function surface(id) {
  const canvas = $(id);
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = Number(canvas.getAttribute("height-css") || canvas.getAttribute("height"));
  canvas.setAttribute("height-css", height);
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  return [pen, width, height];
}

function drawBlocks(state) {
  const total = state.blocks.reduce((sum, run) => sum + run[1], 0);
  const held = state.blocks.reduce((sum, run) => sum + (run[0] >= 0 ? run[1] : 0), 0);
  const kept = state.blocks.reduce((sum, run) => sum + (run[0] === -2 ? run[1] : 0), 0);
  $("kv").textContent = total ? `${count(held)} of ${count(total)} held, ${count(kept)} findable; ${state.block_size} tokens each` : "";
  const space = $("blocks").clientWidth;
  const size = Math.max(1.5, Math.min(14, Math.floor(2 * Math.sqrt((space * MAP_HEIGHT) / Math.max(1, total))) / 2));
  const columns = Math.max(1, Math.floor(space / size)), rows = Math.floor(MAP_HEIGHT / size);
  $("blocks").setAttribute("height-css", Math.max(40, Math.min(MAP_HEIGHT, Math.ceil(total / columns) * size)));
  const [pen] = surface("blocks");
  const each = Math.max(1, Math.ceil(total / (columns * rows))); // blocks of one square, where they are very many
  const gap = size > 4 ? 1 : 0;
  const blank = colour("--blank"), keptColour = colour("--kept"), card = colour("--card");
  let place = 0;
  for (const [holder, length, isShared] of state.blocks) {
    pen.fillStyle = holder === -1 ? blank : holder === -2 ? keptColour : `hsl(${hue(holder)} 55% 50%)`;
    const from = Math.floor(place / each), to = Math.max(from + 1, Math.floor((place + length) / each));
    for (let i = from; i < to; i++) {
      const x = (i % columns) * size, y = Math.floor(i / columns) * size;
      pen.fillRect(x, y, size - gap, size - gap);
      if (isShared && size > 3) {
        pen.save();
        pen.fillStyle = card;
        pen.fillRect(x + size * 0.3, y + size * 0.3, size * 0.3, size * 0.3);
        pen.restore();
      }
    }
    place += length;
  }
}

function drawRoofline(state) {
  const [pen, width, height] = surface("roofline");
  const roof = state.roofline;
  pen.font = "11px system-ui, sans-serif";
  pen.fillStyle = colour("--soft");
  if (!roof || !roof.bandwidth || !roof.peak) {
    $("roof").textContent = roof ? roof.source : "";
    pen.fillText("No ceilings are known yet.", 8, height / 2);
    return;
  }
  $("roof").textContent = `${(roof.bandwidth / 1e9).toFixed(0)} GB/s, ${count(roof.peak / 1e9)} Gop/s (${roof.source})`;
  const ridge = roof.peak / roof.bandwidth;
  const left = 0.1, right = Math.max(1000, ridge * 10), top = roof.peak * 2, bottom = roof.bandwidth * left * 0.5;
  const x = (v) => 8 + (width - 16) * (Math.log(v / left) / Math.log(right / left));
  const y = (v) => height - 20 - (height - 30) * (Math.log(Math.max(v, bottom) / bottom) / Math.log(top / bottom));
  pen.strokeStyle = colour("--ink");
  pen.lineWidth = 1.5;
  pen.beginPath();
  pen.moveTo(x(left), y(roof.bandwidth * left));
  pen.lineTo(x(ridge), y(roof.peak));
  pen.lineTo(x(right), y(roof.peak));
  pen.stroke();
  pen.strokeStyle = colour("--edge");
  pen.setLineDash([3, 3]);
  pen.beginPath();
  pen.moveTo(x(ridge), y(roof.peak));
  pen.lineTo(x(ridge), height - 18);
  pen.stroke();
  pen.setLineDash([]);
  pen.fillText("memory", x(left) + 26, y(roof.bandwidth * left) + 2);
  pen.fillText("arithmetic", x(right) - 60, y(roof.peak) - 6);
  pen.fillText("operations per byte →", 8, height - 4);
  if (!roof.point) return;
  const px = Math.min(Math.max(roof.point.intensity, left), right), py = roof.point.operations_s;
  pen.fillStyle = colour("--accent");
  pen.beginPath();
  pen.arc(x(px), y(py), 5, 0, 2 * Math.PI);
  pen.fill();
  const label = `${(py / 1e9).toPrecision(3)} Gop/s at ${roof.point.intensity < 10 ? roof.point.intensity.toPrecision(2) : count(roof.point.intensity)} a byte`;
  const room = pen.measureText(label).width;
  pen.fillText(label, x(px) + room + 12 > width ? x(px) - room - 10 : x(px) + 10, y(py) + 14);
}

function drawFigures(state) {
  const facts = state.facts;
  const rate = (hits, all) => (all ? percent(hits / all) : "–");
  figures("cache", [
    ["prompt tokens found in the prefix cache", rate(facts.prefix_hits, facts.prefix_queries)],
    ["tokens looked up", count(facts.prefix_queries)],
    ["draft tokens kept", rate(facts.accepted_tokens, facts.draft_tokens)],
    ["draft tokens checked", count(facts.draft_tokens)],
    ["preempted", count(facts.num_preempted)],
    ["memory of the machine", percent(state.memory_share)],
  ]);
  const money = state.money;
  figures("money", money ? [
    ["an hour, a day", `${usd(money.usd_per_hour)}, ${usd(money.usd_per_day)}`],
    ["charged to requests", usd(money.requests_usd)],
    ["idle", usd(money.idle_usd)],
    ["computed again", usd(money.recomputed_usd)],
    ...Object.entries(money.saved_usd).map(([by, value]) => [`saved by ${by.replace("_", " ")}`, usd(value)]),
  ] : [["no price is known", "start with --price"]]);
}

function figures(id, rows) {
  $(id).replaceChildren(...rows.flatMap(([label, value]) => [element("dt", label), element("dd", value)]));
}

addEventListener("resize", () => shown && draw(shown));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => shown && draw(shown));
watch();
