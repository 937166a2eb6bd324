// A row for each device: what serves, its two workers with their beats, and its progress beside its utilisation.

import { byId, element, keyed, say, set } from "./elements.js";
import { newHeat, showHeat } from "./heat.js";
import { count, percent } from "./numbers.js";
import { Sparkline } from "./sparkline.js";
import { DEVICES } from "./traffic.js";

const [BATCHES, ITEMS, UTILIZATION] = [0, 1, 2];
const PATHS = { fused: "fused", shadow: "baseline, fused in its shadow", baseline: "baseline", down: "down" };
const TONES = { fused: "good", shadow: "warn", baseline: "warn", down: "bad" };
const charts = new Map();

export function showDevices(state) {
  keyed(byId("devices"), state.devices, (device) => device.name, newDevice, (row, device) => {
    const index = state.devices.indexOf(device);
    showFacts(row, device);
    const workers = state.workers.filter((worker) => worker.device === device.name);
    keyed(row.querySelector(".workers"), workers, (worker) => worker.name, newWorker, (block, worker) =>
      showWorker(block, worker, state.beats.find((beats) => beats.worker === worker.name)),
    );
    showProgress(device, index, state);
  });
}

function newDevice(device) {
  const chart = new Sparkline("Batches per second");
  charts.set(device.name, chart);
  const alarm = element("p", { class: "divergence", hidden: "" });
  return element(
    "article",
    { class: "device", "aria-label": `Device ${device.name}` },
    element("div", { class: "facts" }, element("h3", {}, device.name), element("p", { class: "path" }), element("dl")),
    element("div", { class: "workers" }),
    element("div", { class: "progress" }, chart.root, alarm),
  );
}

function showFacts(row, device) {
  const path = device.active === null ? "down" : device.path;
  const pill = row.querySelector(".path");
  set(pill, "data-tone", TONES[path]);
  say(pill, PATHS[path]);
  const sizes = device.buckets === null ? "all" : device.buckets.length ? device.buckets.join(" ") : "none";
  const holder = device.holder;
  const weights = holder.size_bytes ? `${holder.state}, ${(holder.size_bytes / 2 ** 20).toFixed(1)} MiB` : holder.state;
  facts(row.querySelector("dl"), [
    ["active worker", device.active ?? "none"],
    ["fused for sizes", path === "fused" ? sizes : "none"],
    ["weights", weights],
    ["restarts left", String(device.restarts_left)],
  ]);
}

export function facts(list, pairs) {
  keyed(list, pairs, ([name]) => name, ([name]) => element("div", {}, element("dt", {}, name), element("dd")), (row, pair) =>
    say(row.lastElementChild, pair[1]),
  );
}

function newWorker(worker) {
  return element(
    "div",
    { class: "worker" },
    element("h4", {}, element("span", {}, `Worker ${worker.name}`), element("span", { class: "life" })),
    element("p", { class: "quiet" }),
    newHeat(),
  );
}

function showWorker(block, worker, beats) {
  const [title, more, heat] = block.children;
  const life = title.lastElementChild;
  const healthy = worker.state === "ready";
  set(life, "data-tone", healthy ? "good" : worker.state === "starting" || worker.state === "backoff" ? "warn" : "bad");
  const role = worker.path === "standby" ? "standby" : "active";
  const stage = worker.stage === "serving" || worker.stage === "none" ? "" : `, ${worker.stage}`;
  say(life, `${role}, ${worker.state}${stage}`);
  showHeat(heat, beats);
  const { fused = 0, baseline = 0 } = worker.batches;
  const pid = worker.pid ? `, pid ${worker.pid}` : "";
  say(more, `Generation ${worker.generation}${pid}. Batches: ${count(fused)} fused, ${count(baseline)} baseline.`);
}

function showProgress(device, index, state) {
  const chart = charts.get(device.name);
  const samples = state.samples.map((sample) => sample[DEVICES][index]);
  const batches = samples.map((sample) => sample[BATCHES]);
  const busy = samples.map((sample) => sample[UTILIZATION]);
  const most = Math.max(1, ...batches);
  const last = samples.at(-1);
  const read = last && last[UTILIZATION] !== null;
  chart.draw({
    kept: state.kept, top: 1,
    figure: last ? count(last[BATCHES]) : "–",
    under: read ? `Dotted: the GPU reads as ${percent(last[UTILIZATION])} busy.` : "",
    lines: [
      ...(read ? [{ kind: "busy", values: busy }] : []),
      { kind: "fused", values: batches.map((value) => value / most) },
    ],
    scale: () => count(most),
    words: last
      ? `Device ${device.name}: ${count(last[BATCHES])} batches and ${count(last[ITEMS])} work items a second, `
        + (read ? `utilisation ${percent(last[UTILIZATION])}` : "no GPU is read")
      : `Device ${device.name}: nothing is known yet`,
  });
  const alarm = chart.root.nextElementSibling;
  alarm.hidden = !state.divergence.includes(device.name);
  say(alarm, alarm.hidden ? "" : "Busy without progress: the GPU reads as busy, and nothing has been finished for 2 s.");
}
