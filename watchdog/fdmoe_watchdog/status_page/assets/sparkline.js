// A small chart of the last two minutes: lines that a title and the last figures explain.

import { drawing, element, say, set } from "./elements.js";

const WIDTH = 240;
const HEIGHT = 48;

/** `lines` are {name, values, kind}; a value of null is a gap. The scale begins at 0 and ends at the highest value, or at
 *  `top`. `marks` are the places of samples that deserve a red tick, counted from the newest. */
export class Sparkline {
  constructor(title) {
    this.figure = element("span", { class: "figure" });
    this.title = element("h3", {}, title);
    this.svg = drawing("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.top = element("span", { class: "top quiet", "aria-hidden": "true" });
    this.plot = element("div", { class: "plot" }, this.svg, this.top);
    this.under = element("p", { class: "quiet" });
    const bar = element("div", { class: "bar" }, this.title, this.figure);
    this.root = element("div", { class: "chart" }, bar, this.plot, this.under);
  }

  draw({ lines, kept, figure, words, scale, top = null, marks = [], under = "" }) {
    const highest = top ?? Math.max(0, ...lines.flatMap((line) => line.values.filter((value) => value !== null)));
    const paths = lines.map((line) =>
      drawing("path", { class: `line ${line.kind}`, d: pathOf(line.values, highest || 1, kept) }),
    );
    const step = WIDTH / (kept - 1);
    const ticks = marks.map((place) => `M${round(WIDTH - place * step)} ${HEIGHT}v-5`).join("");
    this.svg.replaceChildren(
      drawing("path", { class: "axis", d: `M0 ${HEIGHT - 0.5}H${WIDTH}` }),
      ...paths,
      drawing("path", { class: "line bad tick", d: ticks }),
    );
    set(this.svg, "aria-label", words);
    say(this.figure, figure);
    say(this.top, highest ? scale(highest) : "");
    say(this.under, under);
  }
}

function pathOf(values, highest, kept) {
  const step = WIDTH / (kept - 1);
  const start = WIDTH - (values.length - 1) * step;
  let pen = "M";
  return values
    .map((value, index) => {
      if (value === null) {
        pen = "M";
        return "";
      }
      const point = `${pen}${round(start + index * step)} ${round(HEIGHT - 2 - (Math.min(value, highest) / highest) * (HEIGHT - 5))}`;
      pen = "L";
      return point;
    })
    .join("");
}

const round = (number) => Math.round(number * 10) / 10;
