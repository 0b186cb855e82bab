// The engine as it runs, from `/metrics`.

import { element } from "./markdown.js";
import { metrics } from "./server.js";

const $ = (id) => document.getElementById(id);
const SECONDS = 120;
const CELLS = 400;

// Charts by title: their colour's name, their unit, and their value at a sample and the one before it.
const CHARTS = [
  ["Tokens generated", "tokens/s", (now, before) => rate(now, before, "tgi_request_time_between_tokens_duration_count") + rate(now, before, "tgi_request_time_to_first_token_duration_count")],
  ["Tokens computed", "tokens/s", (now, before) => rate(now, before, 'tgi_batch_tokens{method="prefill"}') + rate(now, before, 'tgi_batch_tokens{method="decode"}')],
  ["Rows of the batch", "", ({ samples }) => samples.get("tgi_batch_current_size") ?? 0],
  ["Queue", "requests", ({ samples }) => samples.get("tgi_queue_size") ?? 0],
  ["Time to first token", "ms", (now, before) => mean(now, before, "tgi_request_time_to_first_token_duration")],
  ["Time between tokens", "ms", (now, before) => mean(now, before, "tgi_request_time_between_tokens_duration")],
];

const history = [];
let timer = null;

export function showEngine(shown) {
  clearTimeout(timer);
  timer = null;
  if (shown) poll();
}

async function poll() {
  try {
    history.push({ at: performance.now() / 1000, samples: await metrics() });
    while (history.length > SECONDS + 1) history.shift();
    draw();
  } catch { /* the notice of the page says it */ }
  if (location.hash === "#engine") timer = setTimeout(poll, 1000);
}

// Return how much a counter grows a second between two samples.
function rate(now, before, name) {
  if (!before) return 0;
  const grown = (now.samples.get(name) ?? 0) - (before.samples.get(name) ?? 0);
  return Math.max(0, grown) / (now.at - before.at);
}

// Return the mean of what a histogram of seconds took in between two samples, in milliseconds; null if nothing.
function mean(now, before, name) {
  if (!before) return null;
  const grown = (suffix) => (now.samples.get(`${name}_${suffix}`) ?? 0) - (before.samples.get(`${name}_${suffix}`) ?? 0);
  return grown("count") > 0 ? (1000 * grown("sum")) / grown("count") : null;
}

function sum(samples, name, label) {
  let total = 0;
  for (const [key, value] of samples) if (key === name || key.startsWith(`${name}{`)) if (!label || key.includes(`"${label}"`)) total += value;
  return total;
}

function draw() {
  const now = history.at(-1);
  $("figures").replaceChildren(...figures(now.samples).map(([label, value, detail]) =>
    element("div", { class: "figure" }, element("span", {}, label), element("b", {}, value), element("small", {}, detail))));
  drawBlocks(now.samples);
  $("charts").replaceChildren(...CHARTS.map(chart));
}

function figures(samples) {
  const value = (name) => samples.get(name) ?? 0;
  const percent = (part, whole) => (whole > 0 ? `${Math.round((100 * part) / whole)} %` : "–");
  const used = value('tgi_device_memory_bytes{state="used"}');
  const padding = sum(samples, "tgi_batch_padding_tokens");
  const rows = [
    ["Running", short(value("tgi_batch_current_size")), "rows"],
    ["Waiting", short(value("tgi_queue_size")), "requests"],
    ["Answered", short(sum(samples, "tgi_request_success")), `${short(sum(samples, "tgi_request_failure"))} failed`],
    ["Prefix cache", percent(value("tgi_prefix_cache_hit_tokens"), value("tgi_prefix_cache_query_tokens")), "of prompt tokens"],
    ["Padding", percent(padding, padding + sum(samples, "tgi_batch_tokens")), "of computed tokens"],
    ["Preemptions", short(value("tgi_preemptions")), "since the start"],
  ];
  const graphs = sum(samples, "tgi_graph_compilations");
  if (graphs) rows.push(["Graphs", short(graphs), `${short(value("tgi_graph_misses"))} missed`]);
  if (used) rows.push(["Memory", `${(used / 2 ** 30).toFixed(1)} GiB`, "of the first device"]);
  return rows;
}

function drawBlocks(samples) {
  const [used, cached, free] = ["used", "cached", "free"].map((state) => samples.get(`tgi_kv_blocks{state="${state}"}`) ?? 0);
  const total = used + cached + free;
  if (!total) return;
  const cells = Math.min(CELLS, total);
  const share = (count) => (count ? Math.max(1, Math.round((count / total) * cells)) : 0);
  const kinds = Array.from({ length: cells }, (_, index) => (index < share(used) ? "used" : index < share(used) + share(cached) ? "cached" : "free"));
  $("blocks").replaceChildren(...kinds.map((kind) => element("i", { class: kind })));
  const text = `${used} in use, ${cached} cached, ${free} free of ${total} blocks`;
  $("blocks").setAttribute("aria-label", text);
  $("blocks-text").textContent = `· ${text}`;
}

const SVG = "http://www.w3.org/2000/svg";

function chart([title, unit, valueOf]) {
  const end = history.at(-1).at;
  const points = history.map((now, index) => [SECONDS - (end - now.at), valueOf(now, history[index - 1])]).filter(([, value]) => value !== null);
  const top = Math.max(1e-9, ...points.map(([, value]) => value)) * 1.1;
  const path = points.map(([x, value], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${(40 - (40 * value) / top).toFixed(2)}`).join("");
  const last = points.length ? points.at(-1)[1] : null;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${SECONDS} 40`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("d", path);
  svg.append(line);
  const value = last === null ? "–" : `${short(last)} ${unit}`.trim();
  return element("figure", { class: "chart" }, element("figcaption", {}, title, element("b", {}, value)), svg);
}

function short(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(0)}k`;
  return Number.isInteger(value) ? String(value) : value.toFixed(value < 10 ? 1 : 0);
}
