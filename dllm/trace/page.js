"use strict";
// Replays records of `TraceRecord.to_json`. Text goes into the page as text nodes alone.
(() => {
  const OPEN = "·", AGAIN = "×", LINE = "↵", TAB = "⇥";
  const SLOWEST = 500, FASTEST = 40, WHOLE = 10000; // milliseconds: of a step, of a replay
  const ABOVE = 60; // pixels of the canvas above what it was scrolled to
  const HINT = "Point at a token, or click it to keep it; with the keys , and . you go through them.";
  const WIDE = /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\uff00-\uff60]|\p{Emoji_Presentation}/u;

  /** Returns what each step wrote: an array of [column, token] for each. */
  function writesOf(record) {
    const steps = Array.from({ length: record.num_steps }, () => []);
    if (record.changes) {
      for (const [step, column, token] of record.changes) steps[step].push([column, token]);
      return steps;
    }
    record.commit_step.forEach((step, slot) => {
      const column = record.prompt_length + slot;
      if (step >= 0) steps[step].push([column, record.tokens[column]]);
    });
    return steps;
  }

  /** Returns the canvas after the first `count` steps, as `TraceRecord.frames` does. */
  function traceFrame(record, count, writes = writesOf(record)) {
    const given = new Set(record.given), mask = record.mask_token_id;
    const tokens = record.tokens.map((token, column) =>
      column < record.prompt_length || given.has(column) ? token : mask);
    const written = tokens.map(() => -1);
    let changed = new Map();
    for (let step = 0; step < count; step++) {
      changed = new Map();
      for (const [column, token] of writes[step]) {
        const kind = tokens[column] === mask ? "commit" : "edit";
        changed.set(column, token === mask ? "remask" : kind);
        tokens[column] = token;
        written[column] = step;
      }
      if (step < record.num_steps - 1) continue;
      record.tokens.forEach((token, column) => {
        if (tokens[column] === token) return;
        changed.set(column, "fill");
        tokens[column] = token;
        written[column] = -1;
      });
    }
    return { tokens, written, changed };
  }

  /** Returns the text of every column of a frame, as `texts` in trace_cells.py does. */
  function traceTexts(record, frame) {
    const shown = frame.tokens.map((token, column) => token === record.mask_token_id
      ? (frame.written[column] < 0 ? OPEN : AGAIN)
      : record.pieces[token].replaceAll("\n", LINE + "\n").replaceAll("\t", TAB));
    for (const [start, end, text] of record.joined) {
      const columns = Array.from({ length: end - start }, (_, place) => start + place);
      if (columns.some((column) => frame.tokens[column] !== record.tokens[column])) continue;
      columns.forEach((column, place) => { shown[column] = place ? "" : text; });
    }
    return shown;
  }

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function button(text, label, act) {
    const element = make("button", "", text);
    element.type = "button";
    element.setAttribute("aria-label", label);
    element.title = label;
    element.addEventListener("click", act);
    return element;
  }

  const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
  const width = (text) => [...text].reduce((sum, one) => sum + (WIDE.test(one) ? 2 : 1), 0);

  class Viewer {
    constructor(element, record) {
      Object.assign(this, { record, writes: writesOf(record), step: 0, chosen: -1, kept: -1 });
      this.given = new Set(record.given);
      this.blocks = new Map(record.blocks);
      this.root = make("div", "trace");
      this.root.tabIndex = 0;
      this.root.setAttribute("role", "group");
      this.root.setAttribute("aria-label", `Replay of ${record.label || "a generation"}`);
      this.root.append(this.story(), this.bar(), this.legend(), this.canvas(), this.details());
      this.root.addEventListener("keydown", (event) => this.key(event));
      element.replaceChildren(this.root);
      this.colour("step");
      const first = this.cells[record.prompt_length];
      if (first) this.place.scrollTop = first.offsetTop - ABOVE;
    }

    story() {
      const { label, num_steps, forwards, row_forwards, finish_reason } = this.record;
      const parts = [plural(num_steps, "step") + ` in ${plural(forwards, "forward")}`];
      if (row_forwards !== forwards) parts.push(`${row_forwards} with variants or drafts`);
      parts.push(`ended by: ${finish_reason}`);
      return make("p", "trace-story", (label ? [label, ...parts] : parts).join(" · "));
    }

    bar() {
      const bar = make("div", "trace-bar"), moves = make("span", "trace-group");
      this.play = button("Play", "Play or pause (space)", () => this.toggle());
      this.play.className = "trace-play";
      moves.append(
        button("|◂", "First step (Home)", () => this.show(0)),
        button("◂", "One step back (left arrow)", () => this.show(this.step - 1)),
        this.play,
        button("▸", "One step on (right arrow)", () => this.show(this.step + 1)),
        button("▸|", "Last step (End)", () => this.show(this.record.num_steps)),
      );
      this.slider = make("input");
      Object.assign(this.slider, { type: "range", min: 0, max: this.record.num_steps, value: 0 });
      this.slider.setAttribute("aria-label", "Step");
      this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
      this.counter = make("output", "trace-counter");
      this.counter.setAttribute("aria-live", "polite");
      bar.append(moves, this.slider, this.colours(), this.counter);
      return bar;
    }

    colours() {
      const group = make("span", "trace-group", "colour ");
      group.setAttribute("role", "group");
      this.choices = [["step", "commit step"], ["confidence", "confidence"]].map(([name, text]) => {
        const choice = button(text, `Colour by ${text} (c)`, () => this.colour(name));
        choice.dataset.colour = name;
        return choice;
      });
      group.append(...this.choices);
      return group;
    }

    legend() {
      const legend = make("div", "trace-legend"), ramp = make("span");
      this.from = make("span");
      this.to = make("span");
      ramp.append(this.from, make("span", "trace-ramp"), this.to);
      legend.append(ramp);
      const entry = (classes, text, said) => {
        const one = make("span");
        one.append(make("span", `trace-token ${classes}`, text), said);
        legend.append(one);
      };
      entry("trace-open", OPEN, " open");
      entry("trace-now trace-unknown", " a ", " written in this step");
      if (this.record.changes) {
        entry("trace-again", AGAIN, " masked again");
        entry("trace-now trace-edit trace-unknown", " a ", " edited in this step");
      }
      entry("trace-given", "a", " given");
      entry("trace-fill", "a", " not decoded: after the end");
      if (this.record.blocks.length) entry("trace-block trace-here", " ", " block begins");
      return legend;
    }

    canvas() {
      const canvas = this.place = make("div", "trace-canvas"), end = this.record.num_steps;
      const texts = traceTexts(this.record, traceFrame(this.record, end, this.writes));
      this.cells = texts.map((text, column) => {
        const cell = make("span", "trace-token");
        cell.dataset.column = column;
        // As wide as in the end, so that the text stands still while it fills.
        const [line] = text.split("\n");
        if (text.includes("\n")) cell.dataset.rest = text.slice(line.length);
        else if (text) cell.style.minWidth = `${width(line)}ch`;
        return cell;
      });
      this.seen = this.cells.map(() => "");
      canvas.append(...this.cells);
      const columnOf = (event) => Number(event.target.dataset.column ?? -1);
      canvas.addEventListener("mouseover", (event) => this.choose(columnOf(event)));
      canvas.addEventListener("mouseleave", () => this.choose(this.kept));
      canvas.addEventListener("click", (event) => {
        const column = columnOf(event);
        this.kept = column === this.kept ? -1 : column;
        this.choose(column);
      });
      return canvas;
    }

    details() {
      this.detail = make("div", "trace-detail", HINT);
      this.detail.setAttribute("aria-live", "polite");
      return this.detail;
    }

    colour(name) {
      this.root.dataset.colour = name;
      for (const one of this.choices) {
        one.setAttribute("aria-pressed", String(one.dataset.colour === name));
      }
      const steps = Math.max(this.record.num_steps, 1);
      [this.from.textContent, this.to.textContent] =
        name === "step" ? ["step 1", `step ${steps}`] : ["confidence 0", "1"];
      this.show(this.step);
    }

    /** Shows the canvas after the first `step` steps. */
    show(step) {
      this.step = Math.min(Math.max(step, 0), this.record.num_steps);
      this.frame = traceFrame(this.record, this.step, this.writes);
      const texts = traceTexts(this.record, this.frame);
      this.here = -1;
      let latest = -1;
      for (const [column, entry] of this.blocks) {
        if (entry <= this.step && entry >= latest) [this.here, latest] = [column, entry];
      }
      this.cells.forEach((cell, column) => this.draw(cell, column, texts[column]));
      this.slider.value = this.step;
      this.counter.textContent = this.count();
      this.slider.setAttribute("aria-valuetext", this.counter.textContent);
      this.choose(this.chosen);
      this.follow();
    }

    /** Scrolls the canvas to what this step wrote, if none of it is to be seen. */
    follow() {
      const written = [...this.frame.changed].filter(([, kind]) => kind !== "fill");
      const tops = written.map(([column]) => this.cells[column].offsetTop);
      const { scrollTop, clientHeight } = this.place;
      if (!tops.length || clientHeight >= this.place.scrollHeight) return;
      const seen = tops.some((top) => top >= scrollTop && top < scrollTop + clientHeight - 20);
      if (!seen) this.place.scrollTop = Math.min(...tops) - ABOVE;
    }

    draw(cell, column, text) {
      const part = text === "" && this.frame.tokens[column] !== this.record.mask_token_id;
      const [classes, share] = this.style(column);
      const lines = text.includes("\n") || "rest" in cell.dataset;
      const names = `trace-token ${classes}${lines ? " trace-lines" : ""}${part ? " trace-part" : ""}`;
      const key = `${names} ${share} ${text}`;
      if (key === this.seen[column]) return;
      this.seen[column] = key;
      cell.className = names;
      cell.textContent = text;
      cell.dataset.token = this.frame.tokens[column];
      if (share >= 0) cell.style.setProperty("--t", share);
    }

    /** Returns the classes of a column and where on the ramp its colour is, -1: nowhere. */
    style(column) {
      const { tokens, written, changed } = this.frame, record = this.record;
      const names = [], token = tokens[column];
      let share = -1;
      if (column < record.prompt_length || this.given.has(column)) names.push("trace-given");
      else if (token === record.mask_token_id) {
        names.push("trace-open", ...(written[column] < 0 ? [] : ["trace-again"]));
      } else if (written[column] < 0) names.push("trace-fill");
      else {
        share = this.share(column, written[column]);
        names.push(share < 0 ? "trace-unknown" : "trace-set");
      }
      if (record.special.includes(token) && token !== record.mask_token_id) names.push("trace-special");
      const kind = changed.get(column);
      if (kind && kind !== "fill") names.push("trace-now", `trace-${kind}`);
      if (this.blocks.has(column)) {
        names.push("trace-block", ...(this.blocks.get(column) <= this.step ? ["trace-entered"] : []));
        if (column === this.here) names.push("trace-here");
      }
      if (column === this.chosen) names.push("trace-chosen");
      return [names.join(" "), share];
    }

    share(column, step) {
      const record = this.record, slot = column - record.prompt_length;
      if (this.root.dataset.colour === "step") {
        return record.num_steps > 1 ? step / (record.num_steps - 1) : 0;
      }
      const known = record.commit_step[slot] === step && record.confidence[slot] !== null;
      return known ? Math.min(Math.max(record.confidence[slot], 0), 1) : -1;
    }

    count() {
      const { record, frame, step } = this, kinds = [...frame.changed.values()];
      const number = (kind) => kinds.filter((one) => one === kind).length;
      const slots = record.tokens.length - record.prompt_length - record.given.length;
      const total = frame.written.filter(
        (one, column) => one >= 0 && frame.tokens[column] !== record.mask_token_id).length;
      const parts = [`step ${step} of ${record.num_steps}`];
      if (step) parts.push(`${number("commit")} committed`);
      if (number("edit")) parts.push(`${number("edit")} edited`);
      if (number("remask")) parts.push(`${number("remask")} masked again`);
      if (number("fill")) parts.push(`${number("fill")} filled after the end`);
      return `${parts.join(" · ")} · ${total} of ${plural(slots, "slot")} committed`;
    }

    choose(column) {
      const old = this.chosen;
      this.chosen = column >= 0 && column < this.cells.length ? column : -1;
      const texts = traceTexts(this.record, this.frame);
      for (const one of new Set([old, this.chosen])) {
        if (one >= 0) this.draw(this.cells[one], one, texts[one]);
      }
      const said = this.chosen < 0 ? HINT : this.tell(this.chosen);
      if (this.detail.textContent !== said) this.detail.textContent = said;
    }

    /** Returns all that is known of a column: text, id, step, confidence, history. */
    tell(column) {
      const { record, frame } = this, slot = column - record.prompt_length;
      const text = (token) => token === record.mask_token_id
        ? "masked again" : JSON.stringify(record.pieces[token]);
      const token = frame.tokens[column];
      const open = token === record.mask_token_id;
      const lines = [open ? `open · column ${column}` : `${text(token)} · id ${token} · column ${column}`];
      const group = record.joined.find(([start, end]) => start <= column && column < end);
      if (group) lines[0] += ` · a part of ${JSON.stringify(group[2])}`;
      if (this.blocks.has(column)) lines[0] += ` · block entered after step ${this.blocks.get(column)}`;
      if (slot < 0) lines.push("prompt");
      else if (this.given.has(column)) lines.push("given text");
      else if (record.commit_step[slot] >= 0) {
        const sure = record.confidence[slot];
        lines.push(`committed in step ${record.commit_step[slot] + 1}` +
          (sure === null ? "" : `, confidence ${sure}`));
      } else lines.push("not committed by the model");
      const history = (record.changes || []).filter((change) => change[1] === column)
        .map(([step, , written]) => `step ${step + 1}: ${text(written)}`);
      if (history.length > 1) lines.push(`history: ${history.join(" → ")}`);
      return lines.join("\n");
    }

    toggle() {
      if (this.timer) return this.pause();
      if (this.step === this.record.num_steps) this.show(0);
      this.play.textContent = "Pause";
      this.counter.setAttribute("aria-live", "off"); // or every step would be read out
      const pause = Math.min(Math.max(WHOLE / (this.record.num_steps || 1), FASTEST), SLOWEST);
      this.timer = setInterval(() => {
        this.show(this.step + 1);
        if (this.step === this.record.num_steps || !this.root.isConnected) this.pause();
      }, pause);
    }

    pause() {
      clearInterval(this.timer);
      this.timer = undefined;
      this.play.textContent = "Play";
      this.counter.setAttribute("aria-live", "polite");
    }

    key(event) {
      const tag = event.target.tagName, own = event.target.type === "range" && event.key !== " ";
      if (event.altKey || event.ctrlKey || event.metaKey || tag === "SELECT" || own) return;
      if (tag === "BUTTON" && (event.key === " " || event.key === "Enter")) return;
      const act = {
        ArrowRight: () => this.show(this.step + 1),
        ArrowLeft: () => this.show(this.step - 1),
        Home: () => this.show(0),
        End: () => this.show(this.record.num_steps),
        " ": () => this.toggle(),
        c: () => this.colour(this.root.dataset.colour === "step" ? "confidence" : "step"),
        ",": () => this.walk(-1),
        ".": () => this.walk(1),
        Escape: () => { this.kept = -1; this.choose(-1); },
      }[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    }

    walk(by) {
      const from = this.kept < 0 && by > 0 ? this.record.prompt_length - 1 : this.kept;
      this.kept = Math.min(Math.max(from + by, 0), this.cells.length - 1);
      this.choose(this.kept);
      this.cells[this.kept].scrollIntoView({ block: "nearest" });
    }
  }

  /** Puts a viewer of one record into an element; returns it, with `show(step)` and `pause()`. */
  function mountTrace(element, record) {
    return new Viewer(element, record);
  }

  /** Puts a viewer of the records in the text of `#id` into an element, with a list to choose. */
  function mountTraces(element, id) {
    const records = JSON.parse(document.getElementById(id).textContent);
    const place = make("div"), choice = make("label", "trace-rows", "row"), list = make("select");
    records.forEach((record, row) => {
      const option = make("option", "", `${row + 1}: ${record.label || "no label"}`);
      option.value = row;
      list.append(option);
    });
    let viewer = mountTrace(place, records[0]);
    list.addEventListener("change", () => {
      viewer.pause();
      viewer = mountTrace(place, records[Number(list.value)]);
    });
    choice.append(list);
    element.replaceChildren(...(records.length > 1 ? [choice] : []), place);
    viewer.root.focus({ preventScroll: true });
  }

  Object.assign(window, { mountTrace, mountTraces, traceFrame, traceTexts });
})();
