// Throughput and round trip of the last minute, drawn on a canvas and told in a sentence.

import { readable } from "./files.js";

const SAMPLES = 120;
/** Milliseconds between two samples: with `SAMPLES`, a minute. */
export const EVERY_MS = 500;

/** A live plot. `text` is an element that says what the canvas shows. */
export class Plot {
  #canvas;
  #text;
  #samples = [];

  constructor(canvas, text) {
    this.#canvas = canvas;
    this.#text = text;
    new ResizeObserver(() => this.#draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  /** Bytes per second in and out, and milliseconds of a round trip (null where none was measured). */
  add(received, sent, trip) {
    this.#samples = [...this.#samples, { received, sent, trip }].slice(-SAMPLES);
    this.#tell();
    this.#draw();
  }

  #tell() {
    const { received, sent } = this.#samples.at(-1);
    const trips = this.#samples.map((sample) => sample.trip).filter((trip) => trip !== null);
    const most = (name) => readable(Math.max(...this.#samples.map((sample) => sample[name])));
    const round = trips.length ? `round trip ${milliseconds(trips.at(-1))}` : "no round trip measured yet";
    this.#text.textContent =
      `Now ${readable(received)}/s in, ${readable(sent)}/s out, ${round}. ` +
      `Most within the last minute: ${most("received")}/s in, ${most("sent")}/s out` +
      (trips.length ? `, ${milliseconds(Math.max(...trips))}.` : ".");
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const scale = devicePixelRatio;
    this.#canvas.width = Math.round(width * scale);
    this.#canvas.height = Math.round(height * scale);
    const pen = this.#canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(this.#canvas);
    const colour = (name) => style.getPropertyValue(`--${name}`);
    pen.font = `12px ${style.fontFamily}`;

    const rates = Math.max(1e3, ...this.#samples.flatMap(({ received, sent }) => [received, sent]));
    const trips = Math.max(1, ...this.#samples.map(({ trip }) => trip ?? 0));
    const split = Math.round(height * 0.62);
    const upper = { top: 22, bottom: split - 6, most: rates, name: "Throughput", peak: `${readable(rates)}/s` };
    const lower = { top: split + 24, bottom: height - 4, most: trips, name: "Round trip", peak: milliseconds(trips) };
    for (const lane of [upper, lower]) this.#frame(pen, lane, width, colour);
    this.#line(pen, upper, "received", colour("received"), width, true);
    this.#line(pen, upper, "sent", colour("sent"), width, true);
    this.#line(pen, lower, "trip", colour("trip"), width, false);
  }

  #frame(pen, { top, bottom, name, peak }, width, colour) {
    pen.strokeStyle = colour("line");
    pen.lineWidth = 1;
    for (const y of [top, bottom]) {
      pen.beginPath();
      pen.moveTo(0, y + 0.5);
      pen.lineTo(width, y + 0.5);
      pen.stroke();
    }
    pen.fillStyle = colour("soft");
    pen.textAlign = "left";
    pen.fillText(name, 0, top - 7);
    pen.textAlign = "right";
    pen.fillText(peak, width, top - 7);
  }

  #line(pen, { top, bottom, most }, name, colour, width, filled) {
    const step = width / (SAMPLES - 1);
    const first = SAMPLES - this.#samples.length;
    const points = this.#samples
      .map((sample, index) => [(first + index) * step, sample[name]])
      .filter(([, value]) => value !== null)
      .map(([x, value]) => [x, bottom - (value / most) * (bottom - top)]);
    if (points.length === 0) return;
    pen.beginPath();
    for (const [x, y] of points) pen.lineTo(x, y);
    pen.strokeStyle = pen.fillStyle = colour;
    pen.lineWidth = 2;
    pen.lineJoin = "round";
    pen.stroke();
    if (!filled) return;
    pen.lineTo(points.at(-1)[0], bottom);
    pen.lineTo(points[0][0], bottom);
    pen.globalAlpha = 0.15;
    pen.fill();
    pen.globalAlpha = 1;
  }
}

function milliseconds(number) {
  return `${number < 10 ? number.toFixed(1) : Math.round(number)} ms`;
}
