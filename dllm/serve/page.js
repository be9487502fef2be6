"use strict";
// A conversation over /v1/chat/completions, with the canvas of each answer as it fills.
const state = JSON.parse(document.getElementById("state").textContent);
const at = (id) => document.getElementById(id);
const messages = [];
let running = null;

for (const [list, names] of [["schedulers", state.schedulers], ["caches", state.caches]]) {
  for (const name of names) at(list).append(Object.assign(document.createElement("option"), { value: name }));
}
for (const name of ["scheduler", "cache", "max_tokens", "temperature"]) at(name).value = state.settings[name];
at("max_tokens").max = state.max_tokens;

function said(role, text) {
  const made = document.createElement("div");
  made.className = `said ${role}`;
  made.append(Object.assign(document.createElement("small"), { textContent: role === "user" ? "you" : state.model }));
  const words = document.createElement("span");
  words.textContent = text;
  made.append(words);
  at("log").append(made);
  at("log").scrollTop = at("log").scrollHeight;
  return words;
}

function alarm(text) {
  at("alarm").textContent = text;
  at("alarm").hidden = !text;
}

function blank(count) {
  at("canvas").replaceChildren();
  for (let place = 0; place < count; place++) {
    at("canvas").append(Object.assign(document.createElement("span"), { className: "cell open", textContent: "·" }));
  }
}

function draw(step) {
  const cells = at("canvas").children;
  for (const cell of cells) if (cell.classList.contains("new")) cell.className = "cell done";
  for (const place of step.remasked) put(cells[place], "again", "·");
  for (const [place, , text] of step.drafts) if (!step.remasked.includes(place)) put(cells[place], "draft", text);
  for (const [place, , text] of step.committed) put(cells[place], "new", text);
}

function put(cell, kind, text) {
  if (!cell) return;
  cell.className = `cell ${kind}`;
  cell.textContent = text || "·";
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function asked() {
  const own = { stream: "canvas" };
  for (const name of ["scheduler", "cache"]) if (at(name).value.trim()) own[name] = at(name).value.trim();
  const body = { model: state.model, messages, stream: true, dllm: own };
  for (const name of ["max_tokens", "temperature"]) if (at(name).value !== "") body[name] = Number(at(name).value);
  return body;
}

function request(body) {
  const headers = { "Content-Type": "application/json" };
  if (at("key").value) headers.Authorization = `Bearer ${at("key").value}`;
  return fetch("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal: running.signal });
}

async function answer(words) {
  const body = asked(), pause = Number(at("pause").value) || 0;
  const response = await request(body);
  if (!response.ok) throw new Error((await response.json()).error.message);
  blank(body.max_tokens || state.settings.max_tokens);
  let text = "", committed = 0;
  for await (const event of events(response.body)) {
    if (event.error) throw new Error(event.error.message);
    const step = event.dllm && event.dllm.canvas;
    if (step) {
      draw(step);
      committed += step.committed.length;
      at("counts").textContent = `step ${step.step}, ${committed} tokens, ${(committed / step.step).toFixed(1)} per step`;
      if (pause) await new Promise((done) => setTimeout(done, pause));
      continue;
    }
    const choice = event.choices[0];
    text += (choice && choice.delta.content) || "";
    words.textContent = text;
    if (choice && choice.finish_reason) finish(event.dllm, choice.finish_reason);
  }
  messages.push({ role: "assistant", content: text });
}

function finish(took, reason) {
  const rate = took.tokens_per_forward.toFixed(2), seconds = took.decoding_seconds.toFixed(2);
  at("counts").textContent =
    `${took.forwards} forwards, ${rate} tokens per forward, ${seconds} s (${took.queued_seconds.toFixed(2)} s waiting), ended by ${reason}`;
}

function busy(on) {
  at("send").disabled = on;
  at("stop").disabled = !on;
  at("again").disabled = on;
}

at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = at("text").value.trim();
  if (!text || running) return;
  alarm("");
  running = new AbortController();
  busy(true);
  messages.push({ role: "user", content: text });
  const mine = said("user", text), words = said("assistant", "");
  try {
    await answer(words);
    at("text").value = "";
  } catch (error) {
    messages.pop();
    mine.parentElement.remove();
    words.parentElement.remove();
    alarm(error.name === "AbortError" ? "Stopped; this turn is forgotten." : error.message);
  } finally {
    running = null;
    busy(false);
    at("text").focus();
  }
});

at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
at("stop").addEventListener("click", () => running && running.abort());
document.addEventListener("keydown", (event) => event.key === "Escape" && running && running.abort());
at("again").addEventListener("click", () => {
  messages.length = 0;
  at("log").replaceChildren();
  at("canvas").replaceChildren();
  at("counts").textContent = "Nothing was asked yet.";
  alarm("");
  at("text").focus();
});
at("text").focus();
