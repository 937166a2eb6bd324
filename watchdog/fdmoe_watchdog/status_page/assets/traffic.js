// The gateway's traffic: how much, how fast, how full, by the path that answered.

import { byId } from "./elements.js";
import { count, latency } from "./numbers.js";
import { Sparkline } from "./sparkline.js";

// of a sample and of its traffic, as they come (history.Sample, messages.Traffic)
export const [AT, TRAFFIC, DEVICES] = [0, 1, 2];
const [SECONDS, PATHS, FAILED, IN_FLIGHT, QUEUED] = [0, 1, 2, 3, 4];
const [ANSWERED, P50, P99] = [0, 1, 2];
const SERVED = ["fused", "baseline"];

const charts = {};

export function showTraffic(samples, kept) {
  if (!charts.rate) {
    charts.rate = new Sparkline("Requests per second");
    charts.p50 = new Sparkline("Latency p50");
    charts.p99 = new Sparkline("Latency p99");
    charts.waiting = new Sparkline("In flight");
    byId("traffic").append(...Object.values(charts).map((chart) => chart.root));
  }
  const traffic = samples.map((sample) => sample[TRAFFIC]);
  const marks = traffic.flatMap((one, index) => (!one || one[FAILED] ? [traffic.length - 1 - index] : []));
  const last = traffic.at(-1);

  const rates = SERVED.map((path) => ({
    kind: path,
    values: traffic.map((one) => one && (ofPath(one, path)?.[ANSWERED] ?? 0) / (one[SECONDS] || 1)),
  }));
  const now = rates.map((line) => line.values.at(-1) ?? 0);
  const failed = traffic.reduce((sum, one) => sum + (one ? one[FAILED] : 0), 0);
  const figure = last ? count(now[0] + now[1]) : "no report";
  charts.rate.draw({
    lines: rates, kept, marks, figure, scale: count,
    words: `Requests per second: ${last ? SERVED.map((path, i) => `${path} ${count(now[i])}`).join(", ") : "no report"}; `
      + `${failed} failed in two minutes`,
  });
  for (const [name, which] of [["p50", P50], ["p99", P99]]) {
    const lines = SERVED.map((path) => ({ kind: path, values: traffic.map((one) => ofPath(one, path)?.[which] ?? null) }));
    const told = lines.flatMap((line) => (line.values.at(-1) === null || !line.values.length ? [] : [`${line.kind} ${latency(line.values.at(-1))}`]));
    charts[name].draw({
      lines, kept, scale: latency,
      figure: told.map((words) => words.replace(/^\w+ /, "")).join(" / ") || "–",
      words: `Latency ${name}: ${told.join(", ") || "nothing was answered in the last half second"}`,
    });
  }
  const waiting = [["total", IN_FLIGHT], ["queued", QUEUED]].map(([kind, which]) => ({
    kind, values: traffic.map((one) => (one ? one[which] : null)),
  }));
  charts.waiting.draw({
    lines: waiting, kept, scale: count, under: "Dotted: queued.",
    figure: last ? `${last[IN_FLIGHT]}, ${last[QUEUED]} queued` : "no report",
    words: last ? `${last[IN_FLIGHT]} requests in flight, of which ${last[QUEUED]} are queued` : "The gateway does not report",
  });
}

/** What a path answered; the baseline also answers while fused runs in its shadow. */
function ofPath(traffic, path) {
  if (!traffic) return undefined;
  const paths = traffic[PATHS];
  return path === "baseline" ? paths.baseline ?? paths.shadow : paths[path];
}
