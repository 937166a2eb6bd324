// The status page: documents come in, what they change is drawn.

import { showEvents, showFlight } from "./decisions.js";
import { showDevices } from "./devices.js";
import { byId, element, keyed, say, set } from "./elements.js";
import { showGpus } from "./gpus.js";
import { clockTime, whole } from "./numbers.js";
import { Stream } from "./stream.js";
import { showTraffic } from "./traffic.js";

const KEPT = 240;
const OLD_VIEW_S = 2;

// the sections as they came last (fdmoe_watchdog.status_page.sections)
const state = { kept: KEPT, samples: [], nextSample: 0 };
let lost = "";
let heardAt = performance.now();

function onDocument(news) {
  const before = state.devices;
  const { samples, ...sections } = news;
  Object.assign(state, sections);
  if (samples) addSamples(samples);
  heardAt = performance.now();
  if (news.headline || news.tree) showHeadline();
  if (news.devices || news.workers || news.beats || news.divergence || samples) showDevices(state);
  if (samples) showTraffic(state.samples, KEPT);
  if (news.events) showEvents(news.events);
  if ("flight" in news) showFlight(news.flight);
  if (news.gpus) showGpus(news.gpus);
  if (before && news.devices) announce(before, news.devices);
  showAges();
}

function addSamples({ from, samples }) {
  if (from !== state.nextSample) state.samples = [];
  state.samples = [...state.samples, ...samples].slice(-KEPT);
  state.nextSample = from + samples.length;
}

/** Read out by a screen reader: changes of a path, and nothing that ticks. */
function announce(before, after) {
  const pathOf = (device) => (device.active === null ? "down" : device.path);
  const old = new Map(before.map((device) => [device.name, pathOf(device)]));
  const changed = after.filter((device) => old.has(device.name) && old.get(device.name) !== pathOf(device));
  const words = changed.map((device) => `Device ${device.name} went from ${old.get(device.name)} to ${pathOf(device)}.`);
  if (words.length) say(byId("announcer"), words.join(" "));
}

function showHeadline() {
  const { headline, tree } = state;
  say(byId("version"), tree.version);
  keyed(byId("notes"), headline.notes, (note) => note, (note) => element("li", {}, note));
}

/** What grows older between two documents: ages, and the doubt in what is shown. */
function showAges() {
  const { headline, clock, tree } = state;
  const silent_s = (performance.now() - heardAt) / 1000;
  const stuck = clock && clock.age_s > OLD_VIEW_S;
  const alarm = lost || (stuck ? "The watchdog's loop does not turn" : "");
  const age_s = clock ? clock.age_s + silent_s : silent_s;
  byId("alarm").hidden = !alarm;
  set(document.body, "data-stale", alarm && clock ? "" : null);
  say(byId("link"), alarm ? "not live" : clock ? `live, up ${whole(clock.uptime_s)}` : "connecting");
  set(byId("link"), "data-tone", alarm ? "bad" : "good");
  if (!clock) {
    say(byId("alarm"), alarm && `${alarm}. Trying again.`);
    return;
  }
  const asOf = clockTime((clock.now - clock.age_s) * 1000).slice(0, 8);
  // once, and not each second: it is read out when it changes
  say(byId("alarm"), alarm && `${alarm}. What this page shows is of ${asOf} and may be wrong. Trying again.`);
  say(byId("badge"), alarm ? `Not live, ${whole(age_s)} old` : headline.badge);
  set(byId("badge"), "data-tone", alarm ? "bad" : headline.tone);
  say(byId("sentence"), alarm ? `At ${asOf}: ${headline.words}` : headline.words);
  const ago = (at) => whole(Math.max(clock.now + silent_s - at, 0));
  const stall = headline.stall_at === null
    ? `No stall since the start ${whole(clock.uptime_s)} ago.`
    : `Last stall ${ago(headline.stall_at)} ago${headline.stall ? `: ${headline.stall}` : ""}.`;
  say(byId("stall"), alarm ? "" : stall);
  document.title = alarm ? "✕ not live · fdmoe" : `${{ good: "●", warn: "▲", bad: "✕" }[headline.tone]} ${tree.path} · fdmoe`;
}

new Stream(
  "events",
  onDocument,
  (wrong) => {
    lost = wrong;
    showAges();
  },
);
setInterval(showAges, 1000);
