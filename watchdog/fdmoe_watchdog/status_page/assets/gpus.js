// What NVML says of each GPU, as a table.

import { byId, element } from "./elements.js";
import { gibibytes, percent } from "./numbers.js";

const COLUMNS = [
  ["utilization", "busy", percent],
  ["sm_activity", "SMs", percent],
  ["tensor_activity", "tensor", percent],
  ["dram_bandwidth", "DRAM", percent],
  ["memory_used_bytes", "GiB", gibibytes],
  ["power_watts", "W", (watts) => Math.round(watts)],
  ["temperature_celsius", "°C", Math.round],
];

export function showGpus(views) {
  byId("gpu-section").hidden = !views.length;
  const rows = views.flatMap((view) =>
    view.reason
      ? [element("tr", {}, head(view.device), element("td", { colspan: COLUMNS.length, class: "reason" }, view.reason))]
      : view.gpus.map((gpu) => element("tr", {}, head(view.device), ...COLUMNS.map(([name, , words]) => cell(gpu[name], words)))),
  );
  const recorded = views.some((view) => view.source === "recorded") ? " Replayed from a recording." : "";
  byId("gpus").replaceChildren(
    element(
      "table",
      { class: "figures" },
      element("caption", {}, `As the driver counts them; a dash where it does not say.${recorded}`),
      element("thead", {}, element("tr", {}, ...["device", ...COLUMNS.map((column) => column[1])].map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, ...rows),
    ),
    ...views.filter((view) => Object.values(view.xids).some(Boolean)).map(xids),
  );
}

const head = (device) => element("th", { scope: "row" }, device);
const cell = (value, words) => element("td", {}, value === undefined ? "–" : String(words(value)));

function xids(view) {
  const seen = Object.entries(view.xids).filter(([, times]) => times).map(([xid, times]) => `${xid} (${times})`);
  return element("p", { class: "reason" }, `Xids of ${view.device}: ${seen.join(", ")}`);
}
