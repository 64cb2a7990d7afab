// A bundle to try: a picture, a question, a ratio; answers side by side, with the patches that stayed.
"use strict";

const at = (id) => document.getElementById(id);
let bundles = [];
let picture = null;
let running = null;

// Every text of the server or the reader is set as text, never as markup.
function made(name, text, kind) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function headers() {
  const key = at("key").value;
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function refusal(response) {
  if (response.status === 401) at("locked").hidden = false;
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered with status ${response.status}`;
  }
}

async function look() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) {
    at("facts").textContent = await refusal(response);
    return;
  }
  const all = (await response.json()).data;
  bundles = all.filter((each) => !all.some((other) => each.id.startsWith(`${other.id}@`)));
  at("model").replaceChildren(...bundles.map((each) => new Option(each.id, each.id)));
  at("models").hidden = bundles.length < 2;
  chosen();
}

const bundle = () => bundles.find((each) => each.id === at("model").value);
const ratios = () => [...bundle().ratios].sort((a, b) => a - b);
const percent = (ratio) => `${Math.round(100 * ratio)} %`;

function chosen() {
  const one = bundle();
  at("facts").textContent = `${one.id}: ${one.family} by ${one.method}, ratios ${one.ratios.join(", ")}`;
  at("ratio").max = one.ratios.length - 1;
  at("ratio").value = ratios().indexOf(one.ratio);
  slid();
}

function slid() {
  at("kept").textContent = at("wants").checked ? "as many as the time allows" : percent(ratios()[at("ratio").value]);
  at("ratio").disabled = at("wants").checked;
}

function show(file) {
  if (!file) return;
  const reader = new FileReader();
  reader.onload = () => {
    picture = reader.result;
    at("preview").src = picture;
    at("preview").hidden = false;
    at("hint").hidden = true;
  };
  reader.readAsDataURL(file);
}

// What was asked, as a card that fills while the answer comes.
function card(question) {
  const article = made("article");
  const title = made("h2", "…");
  const said = made("p", "", "said");
  article.append(title, made("p", question, "asked"), said);
  at("answers").prepend(article);
  return { article, title, said };
}

async function ask(budget) {
  const question = at("question").value.trim();
  const one = bundle();
  const parts = [{ type: "text", text: question }];
  if (picture) parts.unshift({ type: "image_url", image_url: { url: picture } });
  const body = {
    model: one.id, messages: [{ role: "user", content: parts }], stream: true,
    stream_options: { include_usage: true }, patches: Boolean(picture && one.patches), ...budget,
  };
  const shown = card(question);
  const came = performance.now();
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", body: JSON.stringify(body), signal: running.signal,
      headers: { "Content-Type": "application/json", ...headers() },
    });
    if (!response.ok) throw new Error(await refusal(response));
    let last = {};
    let first = null;
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      first = first ?? performance.now() - came;
      shown.said.textContent += event.choices[0]?.delta.content ?? "";
      last = { ...last, ...event };
    }
    told(shown, last, first);
    return true;
  } catch (error) {
    if (!shown.said.textContent) shown.article.remove();
    else shown.title.textContent = "stopped";
    if (error.name !== "AbortError") at("error").textContent = error.message;
    return false;
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const lines = held.split("\n\n");
    held = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function told(shown, last, first) {
  const stages = Object.entries(last.usage.visual_tokens);
  shown.title.textContent = `${percent(last.ratio)} kept`;
  if (last.instead_of_ratio) shown.title.append(made("span", `busy, instead of ${percent(last.instead_of_ratio)}`));
  const facts = made("dl");
  const fact = (name, value) => facts.append(made("dt", name), made("dd", value));
  fact("first token", `${Math.round(last.timings.time_to_first_token_ms)} ms`);
  fact("as seen here", `${Math.round(first)} ms`);
  if (last.timings.waited_ms >= 1) fact("waited", `${Math.round(last.timings.waited_ms)} ms`);
  const speed = last.timings.decode_tokens_per_s;
  if (speed) fact("then", `${speed.toFixed(1)} tokens/s`);
  if (stages.length) fact("visual tokens", `${stages[0][1]} → ${stages[stages.length - 1][1]}`);
  shown.article.append(facts);
  if (last.patches) shown.article.insertBefore(drawn(last.patches), facts);
}

// The picture as the model saw it, dark where no token stands any more behind the last site.
function drawn(patches) {
  const canvas = made("canvas");
  const sites = patches.sites;
  const kept = new Set(sites.length ? sites[sites.length - 1].kept : null);
  canvas.setAttribute("role", "img");
  const stay = sites.length ? kept.size : patches.rows * patches.columns;
  canvas.setAttribute("aria-label", `${stay} of ${patches.rows * patches.columns} patches stay`);
  const image = new Image();
  image.onload = () => {
    canvas.width = image.width;
    canvas.height = image.height;
    const pen = canvas.getContext("2d");
    pen.drawImage(image, 0, 0);
    pen.fillStyle = "rgba(16, 16, 20, .78)";
    const wide = image.width / patches.columns;
    const high = image.height / patches.rows;
    for (let place = 0; sites.length && place < patches.rows * patches.columns; place += 1) {
      if (kept.has(place)) continue;
      const left = Math.round((place % patches.columns) * wide);
      const top = Math.round(Math.floor(place / patches.columns) * high);
      pen.fillRect(left, top, Math.round(wide), Math.round(high));
    }
    canvas.dataset.drawn = "true";
  };
  image.src = patches.picture;
  return canvas;
}

async function each(budgets) {
  at("error").textContent = "";
  running = new AbortController();
  for (const id of ["ask", "each"]) at(id).disabled = true;
  at("stop").disabled = false;
  for (const budget of budgets) if (!(await ask(budget))) break;
  for (const id of ["ask", "each"]) at(id).disabled = false;
  at("stop").disabled = true;
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const goal = { ttft_ms: Number(at("goal").value) };
  each([at("wants").checked ? goal : { ratio: ratios()[at("ratio").value] }]);
});
at("each").addEventListener("click", () => each(ratios().map((ratio) => ({ ratio }))));
at("stop").addEventListener("click", () => running.abort());
at("file").addEventListener("change", () => show(at("file").files[0]));
at("ratio").addEventListener("input", slid);
at("wants").addEventListener("change", slid);
at("model").addEventListener("change", chosen);
at("key").addEventListener("change", look);
for (const name of ["dragover", "dragleave", "drop"]) {
  at("drop").addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") show(event.dataTransfer.files[0]);
  });
}
look();
