// Tokens per second of an answer while it streams.

/** The rate over the last few seconds, so that it follows what happens now. */
export class SpeedMeter {
  #window;
  /** @type {{time: number, count: number}[]} */
  #marks = [];
  #count = 0;

  /** @param {number} window milliseconds */
  constructor(window = 3000) {
    this.#window = window;
  }

  get count() {
    return this.#count;
  }

  /** @param {number} tokens @param {number} time milliseconds */
  add(tokens, time) {
    this.#count += tokens;
    this.#marks.push({ time, count: this.#count });
    // One mark older than the window stays: the rate is measured from it.
    let drop = 0;
    while (
      drop + 1 < this.#marks.length &&
      time - (this.#marks[drop + 1]?.time ?? time) >= this.#window
    )
      drop++;
    this.#marks.splice(0, drop);
  }

  /** Tokens per second; null before there are two marks. @param {number} now milliseconds */
  rate(now) {
    const first = this.#marks[0];
    if (!first || this.#marks.length < 2 || now <= first.time) return null;
    return ((this.#count - first.count) * 1000) / (now - first.time);
  }
}
