// The connection to the watchdog. A page that freezes on good news would be the fault that this project is about, so
// silence is told: the watchdog sends a document every second at least, whether there is news or not.

const SILENCE_MS = 3000;
const HIDDEN_MS = 60000;
const PAUSES_MS = [1000, 2000, 5000, 10000];

/** Calls `onDocument` with each document, and `onState` with "live" or with what is wrong in words. */
export class Stream {
  constructor(url, onDocument, onState) {
    Object.assign(this, { url, onDocument, onState, failures: 0, heardAt: performance.now(), lost: "" });
    setInterval(() => this.look(), 500);
    // a page that nobody sees gives its place to somebody who looks
    document.addEventListener("visibilitychange", () => {
      clearTimeout(this.hiding);
      if (document.hidden) this.hiding = setTimeout(() => this.close(), HIDDEN_MS);
      else if (!this.source) this.open();
    });
    this.open();
  }

  open() {
    clearTimeout(this.retry);
    this.source = new EventSource(this.url);
    this.source.onmessage = (message) => {
      this.heardAt = performance.now();
      this.failures = 0;
      this.lost = "";
      this.onDocument(JSON.parse(message.data));
      this.onState("");
    };
    this.source.onerror = () => this.failed();
  }

  close() {
    clearTimeout(this.retry);
    this.source?.close();
    this.source = null;
  }

  async failed() {
    this.lost = "The connection to the watchdog is lost";
    this.onState(this.lost);
    if (this.source?.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
    this.again(PAUSES_MS[Math.min(this.failures++, PAUSES_MS.length - 1)]);
    try {
      const answer = await fetch(this.url, { method: "HEAD", cache: "no-store" });
      if (answer.status !== 503) return;
      this.lost = "The watchdog serves as many status pages as it can";
      this.again(1000 * Number(answer.headers.get("Retry-After") ?? 5));
      this.onState(this.lost);
    } catch {
      // nobody is there: that has been said
    }
  }

  again(pause) {
    this.close();
    this.retry = setTimeout(() => this.open(), pause);
  }

  look() {
    if (!this.lost && this.source && performance.now() - this.heardAt > SILENCE_MS) {
      this.onState("The watchdog says nothing");
    } else if (this.lost) {
      this.onState(this.lost);
    }
  }
}
