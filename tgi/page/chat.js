// The chat: conversations kept in the browser, answers as they stream.

import { codeBlock, element, render } from "./markdown.js";
import { stream } from "./server.js";
import { load, save } from "./store.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed", "repetition_penalty"];
const ALTERNATIVES = 5;

let chats = load("chats", []);
let current = chats[0]?.id ?? null;
let running = null; // AbortController of the answer that streams

// Messages are OpenAI's, and an answer has besides: `reasoning`, `tokens`, `note` and `error`.
const chat = () => chats.find((one) => one.id === current);

export function showChat() {
  $("composer").addEventListener("submit", submit);
  $("message").addEventListener("keydown", onKey);
  $("message").addEventListener("input", grow);
  $("stop").addEventListener("click", stop);
  $("new-chat").addEventListener("click", () => open(null));
  $("menu").addEventListener("click", () => toggle("menu", "chats", "open"));
  $("settings-toggle").addEventListener("click", () => toggle("settings-toggle", "settings"));
  $("defaults").addEventListener("click", () => { $("settings-form").reset(); save("settings", {}); });
  $("settings-form").addEventListener("input", () => save("settings", settings()));
  $("settings-form").addEventListener("submit", (event) => event.preventDefault());
  addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
  fillSettings();
  draw();
}

function toggle(button, panel, name) {
  const shown = name ? $(panel).classList.toggle(name) : !($(panel).hidden = !$(panel).hidden);
  $(button).setAttribute("aria-expanded", shown);
}

function settings() {
  const form = new FormData($("settings-form"));
  return Object.fromEntries([...form].filter(([, value]) => value !== ""));
}

function fillSettings() {
  for (const [name, value] of Object.entries(load("settings", {}))) {
    const field = $("settings-form").elements[name];
    if (field?.type === "checkbox") field.checked = true;
    else if (field) field.value = value;
  }
}

function onKey(event) {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
}

function grow() {
  const box = $("message");
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, 240)}px`;
}

function submit(event) {
  event.preventDefault();
  const text = $("message").value.trim();
  if (!text || running) return;
  $("message").value = "";
  grow();
  if (!chat()) {
    chats.unshift({ id: Date.now(), title: text.slice(0, 60), messages: [] });
    current = chats[0].id;
  }
  chat().messages.push({ role: "user", content: text });
  answer();
}

function stop() {
  running?.abort();
}

function open(id) {
  stop();
  current = id;
  $("chats").classList.remove("open");
  draw();
  $("message").focus();
}

function remove(id) {
  if (id === current) stop();
  chats = chats.filter((one) => one.id !== id);
  if (id === current) current = chats[0]?.id ?? null;
  save("chats", chats);
  draw();
}

// Answer the last message again, from the message with this index on.
function retry(index) {
  stop();
  chat().messages.length = index;
  answer();
}

function edit(index) {
  stop();
  $("message").value = chat().messages[index].content;
  chat().messages.length = index;
  save("chats", chats);
  draw();
  grow();
  $("message").focus();
}

// Return the body of a request. Raises an error if the tools are not JSON.
function bodyOf(messages) {
  const options = settings();
  const body = { stream: true, stream_options: { include_usage: true }, messages: messages.map(({ role, content, tool_calls }) => ({ role, content, ...(tool_calls?.length ? { tool_calls } : {}) })) };
  if (options.system) body.messages.unshift({ role: "system", content: options.system });
  for (const name of NUMBERS) if (options[name]) body[name] = Number(options[name]);
  if (options.stop) body.stop = [options.stop];
  if (options.logprobs) Object.assign(body, { logprobs: true, top_logprobs: ALTERNATIVES });
  if (options.tools) {
    try {
      body.tools = JSON.parse(options.tools);
    } catch (error) {
      throw new Error(`The tools in the settings are not JSON: ${error.message}`);
    }
  }
  return body;
}

async function answer() {
  const conversation = chat();
  const message = { role: "assistant", content: "", reasoning: "", tokens: [], tool_calls: [] };
  const { key } = settings();
  const controller = running = new AbortController();
  const started = performance.now();
  let first = null;
  let denied = false;
  busy(true);
  try {
    const body = bodyOf(conversation.messages);
    conversation.messages.push(message);
    draw();
    for await (const event of stream("v1/chat/completions", body, key, controller.signal)) {
      first ??= performance.now();
      take(message, event);
      if (event.usage) message.note = timing(event.usage, started, first);
      drawLast(conversation, message);
    }
  } catch (error) {
    if (conversation.messages.at(-1) !== message) conversation.messages.push(message);
    denied = error.status === 401;
    if (error.name === "AbortError") message.note = "Stopped.";
    else message.error = denied ? "The server wants an API key: enter it in the settings, then retry." : error.message;
  }
  if (running === controller) running = null;
  save("chats", chats);
  busy(running !== null);
  $("spoken").textContent = message.error ?? message.content;
  draw();
  if (denied) askKey();
}

function askKey() {
  if ($("settings").hidden) toggle("settings-toggle", "settings");
  $("settings-form").elements.key.focus();
}

// Add an event of the stream to the message.
function take(message, event) {
  const choice = event.choices?.[0];
  if (!choice) return;
  const { delta } = choice;
  message.content += delta.content ?? "";
  message.reasoning += delta.reasoning_content ?? delta.reasoning ?? "";
  for (const call of delta.tool_calls ?? []) {
    const known = (message.tool_calls[call.index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
    known.id ||= call.id ?? "";
    known.function.name += call.function?.name ?? "";
    known.function.arguments += call.function?.arguments ?? "";
  }
  message.tokens.push(...(choice.logprobs?.content ?? []));
  if (choice.finish_reason === "length") message.cut = true;
}

function timing(usage, started, first) {
  const seconds = (performance.now() - first) / 1000;
  const rate = usage.completion_tokens > 1 && seconds > 0 ? `, ${((usage.completion_tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
  const cached = usage.prompt_tokens_details?.cached_tokens;
  return `${usage.prompt_tokens} + ${usage.completion_tokens} tokens${cached ? ` (${cached} cached)` : ""}, first after ${((first - started) / 1000).toFixed(2)} s${rate}`;
}

function busy(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
  $("messages").setAttribute("aria-busy", on);
}

// Drawing

function draw() {
  $("chat-list").replaceChildren(...chats.map((one) => element("li", { class: one.id === current ? "current" : null },
    element("button", { type: "button", onclick: () => open(one.id), "aria-current": one.id === current ? "true" : null }, one.title),
    element("button", { type: "button", class: "icon", "aria-label": `Delete ${one.title}`, onclick: () => remove(one.id) }, "×"))));
  const messages = chat()?.messages ?? [];
  $("messages").replaceChildren(...(messages.length ? messages.map(drawMessage) : [welcome()]));
  scroll(true);
}

let waiting = false;

// Draw the last message at the next frame, however many events come until then.
function drawLast(conversation, message) {
  if (waiting || conversation.id !== current) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    if (conversation.id !== current || conversation.messages.at(-1) !== message) return;
    const follow = nearEnd();
    $("messages").lastElementChild?.replaceWith(drawMessage(message, conversation.messages.length - 1));
    scroll(follow);
  });
}

function nearEnd() {
  const { scrollTop, clientHeight, scrollHeight } = $("messages");
  return scrollHeight - scrollTop - clientHeight < 60;
}

function scroll(follow) {
  if (follow) $("messages").scrollTop = $("messages").scrollHeight;
}

function welcome() {
  return element("div", { class: "welcome" }, element("h1", {}, "What can I help with?"),
    element("p", {}, "Chats stay in this browser."));
}

function drawMessage(message, index) {
  const user = message.role === "user";
  const parts = [];
  if (message.reasoning) {
    parts.push(element("details", { open: !message.content && !message.note }, element("summary", {}, "Reasoning"), ...render(message.reasoning)));
  }
  if (user) parts.push(element("p", { class: "typed" }, message.content));
  else if (message.probabilities) parts.push(tokens(message.tokens));
  else parts.push(...render(message.content));
  for (const call of message.tool_calls ?? []) parts.push(element("div", { class: "call" }, element("b", {}, `Calls ${call.function.name}`), codeBlock(pretty(call.function.arguments), "json")));
  if (message.error) parts.push(element("p", { class: "error", role: "alert" }, message.error));
  if (message.cut) parts.push(element("p", { class: "note" }, "Cut at the maximum number of tokens."));
  if (!user && !parts.length) parts.push(element("p", { class: "note" }, "…"));
  return element("article", { class: message.role, "aria-label": user ? "You" : "Answer" }, ...parts, controls(message, index));
}

function controls(message, index) {
  const button = (label, onclick) => element("button", { type: "button", onclick }, label);
  const row = element("footer", {});
  if (message.role === "user") row.append(button("Edit", () => edit(index)));
  else {
    row.append(button("Retry", () => retry(index)), button("Copy", () => navigator.clipboard?.writeText(message.content)));
    if (message.tokens.length) {
      row.append(button(message.probabilities ? "Text" : "Tokens", () => { message.probabilities = !message.probabilities; draw(); }));
    }
    if (message.note) row.append(element("span", { class: "note" }, message.note));
  }
  return row;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

// Return the tokens of an answer, coloured by their probability, with their alternatives on hover and focus.
function tokens(given) {
  const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)} %`;
  const show = (text) => text.replaceAll("\n", "⏎");
  return element("p", { class: "tokens" }, ...given.map((token) => {
    const others = (token.top_logprobs ?? []).map((one) => `${JSON.stringify(one.token)} ${percent(one.logprob)}`);
    const hint = [`${JSON.stringify(token.token)} ${percent(token.logprob)}`, "", ...others].join("\n");
    const span = element("span", { tabindex: 0, "data-hint": hint, "aria-label": hint }, show(token.token));
    span.style.setProperty("--doubt", (1 - Math.exp(token.logprob)).toFixed(3));
    return token.token.includes("\n") ? [span, element("br")] : [span];
  }).flat());
}
