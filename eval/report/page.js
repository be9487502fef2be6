"use strict";
// Sorts the tables of figures and shows single problems. Text goes in as text nodes alone.
(() => {
  /** Returns a new element; `children` are elements or text. */
  function make(tag, attributes = {}, children = []) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  /** Returns what a cell is sorted by: its first number, else its text. */
  function keyOf(cell) {
    const text = cell.textContent.trim();
    const number = /^[+-]?[\d.,]+/.exec(text);
    return number && !cell.classList.contains("words")
      ? Number(number[0].replaceAll(",", ""))
      : text.toLowerCase();
  }

  function compare(one, other) {
    const numbers = [typeof one, typeof other].map((type) => type === "number");
    if (numbers[0] && numbers[1]) return one - other;
    if (numbers[0] !== numbers[1]) return numbers[0] ? -1 : 1;
    return one.localeCompare(other, undefined, { numeric: true });
  }

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", { type: "button" }, [head.textContent || "no."]);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const falls = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", falls ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((one, other) => {
          const order = compare(keyOf(one.cells[column]), keyOf(other.cells[column]));
          return falls ? -order : order;
        });
        table.tBodies[0].append(...rows);
      });
    });
  }

  function verdict(answer) {
    if (answer.correct === null) return make("span", {}, ["not scored"]);
    return answer.correct
      ? make("span", { class: "right" }, ["right"])
      : make("span", { class: "wrong" }, ["wrong"]);
  }

  /** Returns a row of a problem's table; its button replays the trace on the stage. */
  function answerRow(answer, stage, buttons) {
    const replay = [];
    if (answer.trace) {
      const button = make("button", { type: "button", class: "replay", "aria-pressed": "false" },
        ["replay"]);
      button.addEventListener("click", () => {
        for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
        const place = make("div");
        stage.replaceChildren(make("h3", {}, [`${answer.number}  ${answer.run}`]), place);
        mountTrace(place, answer.trace);
        stage.scrollIntoView({ behavior: "smooth", block: "nearest" });
      });
      buttons.push(button);
      replay.push(button);
    }
    return make("tr", {}, [
      make("td", {}, [String(answer.number)]),
      make("td", { class: "words" }, [answer.run]),
      make("td", {}, [verdict(answer)]),
      make("td", {}, [String(answer.forwards)]),
      make("td", {}, [String(answer.tokens)]),
      make("td", { class: "words" }, [make("pre", {}, [answer.text])]),
      make("td", {}, replay),
    ]);
  }

  function show(problem, place) {
    const stage = make("div", { class: "stage" });
    const heads = ["no.", "run", "", "forwards", "tokens", "text", ""].map((head) =>
      make("th", ["run", "text"].includes(head) ? { class: "words" } : {}, [head]));
    const buttons = [];
    const rows = problem.answers.map((answer) => answerRow(answer, stage, buttons));
    const table = make("table", { class: "figures" }, [
      make("thead", {}, [make("tr", {}, heads)]), make("tbody", {}, rows)]);
    place.replaceChildren(
      make("h3", {}, ["prompt"]), make("pre", {}, [problem.prompt]),
      make("h3", {}, ["expected"]), make("pre", {}, [problem.expected]),
      make("h3", {}, ["answers"]), make("div", { class: "scroll" }, [table]), stage);
  }

  function labelOf(problem) {
    const right = problem.answers.filter((answer) => answer.correct).length;
    return `${problem.task}: ${problem.id} (${right} of ${problem.answers.length} right)`;
  }

  function problems(place, all) {
    if (!all.length) return;
    const select = make("select", { "aria-label": "problem" },
      all.map((problem, index) => make("option", { value: index }, [labelOf(problem)])));
    const shown = make("div");
    const go = (index) => {
      select.value = String((index + all.length) % all.length);
      show(all[Number(select.value)], shown);
    };
    const step = (text, by) => {
      const button = make("button", { type: "button" }, [text]);
      button.addEventListener("click", () => go(Number(select.value) + by));
      return button;
    };
    select.addEventListener("change", () => go(Number(select.value)));
    const bar = make("div", { class: "chooser" },
      [step("previous", -1), select, step("next", 1)]);
    place.replaceChildren(bar, shown);
    go(0);
  }

  document.querySelectorAll("table.figures").forEach(sortable);
  const answers = JSON.parse(document.getElementById("answers").textContent);
  problems(document.getElementById("problems"), answers);
})();
