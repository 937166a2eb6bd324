// A worker's beats: a cell for each CTA, by how much of the stall time its age is. The line below says the same in words.

import { element, say, set } from "./elements.js";
import { duration, plural } from "./numbers.js";

const STATES = { i: "idle", n: "not in this launch yet", k: "at work", w: "waiting", l: "has left" };

export function newHeat() {
  const words = element("p", { class: "heat-words" });
  return element("div", { class: "heat" }, element("div", { class: "cells", role: "img" }), words);
}

export function showHeat(root, beats) {
  const [cells, words] = root.children;
  const count = beats?.states.length ?? 0;
  while (cells.childElementCount > count) cells.lastElementChild.remove();
  while (cells.childElementCount < count) cells.append(element("i", { class: "cell" }));
  set(cells, "data-size", count <= 32 ? "large" : count <= 192 ? "medium" : "small");
  for (let cta = 0; cta < count; cta++) {
    set(cells.children[cta], "data-level", levelOf(beats, cta));
    set(cells.children[cta], "data-state", beats.states[cta]);
  }
  cells.onpointerover = (event) => {
    const cta = [...cells.children].indexOf(event.target);
    if (cta >= 0) event.target.title = wordsOf(beats, cta);
  };
  const text = summary(beats, count);
  say(words, text);
  set(cells, "aria-label", `Beats of ${plural(count, "CTA")}`);
}

function levelOf(beats, cta) {
  const state = beats.states[cta];
  if (state === "i" || state === "n") return "idle";
  if (state === "l") return "left";
  const share = beats.stall_after_ms ? beats.ages_ms[cta] / beats.stall_after_ms : 0;
  return share >= 1 ? "3" : share >= 0.5 ? "2" : share >= 0.25 ? "1" : "0";
}

function wordsOf(beats, cta) {
  const age = beats.ages_ms.length && beats.states[cta] !== "n" ? `, beat ${duration(beats.ages_ms[cta] / 1000)} old` : "";
  return `CTA ${cta}: ${STATES[beats.states[cta]]}${age}`;
}

function summary(beats, count) {
  if (!count) return "No CTA has beaten yet.";
  if (!beats.ages_ms.length) return `${plural(count, "CTA")}, idle: no launch is outstanding.`;
  const of = (state) => [...beats.states].filter((one) => one === state).length;
  const parts = [["k", "at work"], ["w", "waiting"], ["l", "left"], ["n", "not yet in it"]];
  const told = parts.filter(([state]) => of(state)).map(([state, name]) => `${of(state)} ${name}`).join(", ");
  const launch = `Launch ${beats.launch} of ${beats.layer}, ${plural(beats.tokens, "token")}`;
  if (beats.oldest < 0) return `${launch}: ${told}.`;
  const age = duration(beats.ages_ms[beats.oldest] / 1000);
  const limit = beats.stall_after_ms ? `the stall time is ${duration(beats.stall_after_ms / 1000)}` : "warming up";
  return `${launch}: ${told}. Oldest beat: CTA ${beats.oldest}, ${age}; ${limit}.`;
}
