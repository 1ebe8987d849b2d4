// Shows events as they are stored. Whatever came from outside is written with textContent, never as markup.

const SHOWN_MAX = 50;
const RETRY_MS = { first: 1000, most: 15000 };

const element = (id) => document.getElementById(id);
const nodes = {
  status: element("status"), keys: element("keys"), form: element("keys-form"), write: element("write"),
  secret: element("secret"), problem: element("problem"), curl: element("curl"), copy: element("copy"),
  hint: element("hint"), events: element("events"), count: element("count"), empty: element("empty"),
  list: element("list"), forget: element("forget"), version: element("version"),
};

/** What the collector answered instead of what was asked for. */
class Refused extends Error {
  constructor(status, problem, kind) {
    super(problem.detail ?? `the collector answered ${status}`);
    this.kind = kind;
    this.final = status >= 400 && status < 500 && status !== 408 && status !== 429;
    this.code = problem.code;
  }
}

// Keys arrive behind the #, which browsers never send anywhere. They leave the address at once, so that it can be shared.
function takeKeys() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const kind of ["write", "secret"]) {
    if (given.has(kind)) sessionStorage.setItem(kind, given.get(kind));
  }
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
}

const key = (kind) => sessionStorage.getItem(kind) ?? "";

async function ask(path, signal, headers = {}, kind = "secret") {
  const response = await fetch(path, {
    signal, cache: "no-store", headers: { Authorization: `Bearer ${key(kind)}`, ...headers },
  });
  if (response.ok) return response;
  throw new Refused(response.status, await response.json().catch(() => ({})), kind);
}

// A line to paste with a key that can't send is worse than none: both keys are looked at before anything is done with them.
async function checkKeys(signal) {
  const found = {};
  for (const kind of ["write", "secret"].filter(key)) {
    found[kind] = await (await ask("/v1/key", signal, {}, kind)).json();
    if (found[kind].kind !== kind) throw new Refused(403, { detail: `this is a ${found[kind].kind} key` }, kind);
  }
  if (found.write && found.secret && found.write.project_id !== found.secret.project_id) {
    throw new Refused(403, { detail: "it belongs to another project than the secret key" }, "write");
  }
}

function say(state, text) {
  nodes.status.dataset.state = state;
  nodes.status.textContent = text;
}

function showSending() {
  const write = key("write");
  nodes.curl.textContent =
    `curl --json '{"name":"hello"}' \\\n  -H 'Authorization: Bearer ${write || "YOUR_WRITE_KEY"}' \\\n` +
    `  ${location.origin}/v1/events`;
  nodes.hint.hidden = !write;
}

function askForKeys(problem) {
  nodes.keys.hidden = false;
  nodes.events.hidden = true;
  nodes.problem.hidden = !problem;
  nodes.problem.textContent = problem ?? "";
  nodes.write.value = key("write");
  nodes.secret.value = key("secret");
}

function part(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// Numbers as their sender wrote them: to JavaScript 9007199254740993 and 1.10 are others. A browser without raw numbers
// (before 2025) shows its own.
const exact = (text) => JSON.parse(text, (_, value, context) =>
  typeof value === "number" && context?.source && JSON.rawJSON ? JSON.rawJSON(context.source) : value);

/** Characters that would turn the text around them or hide in it, by their numbers. */
const visible = (text) => text.replace(
  /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
  (control) => `\\u${control.charCodeAt(0).toString(16).padStart(4, "0")}`,
);

function when(event) {
  const time = new Date(event.time);
  const today = time.toDateString() === new Date().toDateString();
  return today ? time.toLocaleTimeString() : time.toLocaleString();
}

function row(event, properties, isNew) {
  const item = part("li", isNew ? "new" : "", "");
  const time = part("time", "", when(event));
  time.dateTime = event.time;
  time.title = `${event.time}, position ${event.position}`;
  const shown = JSON.stringify(properties);
  const rest = [event.user && `user ${event.user}`, shown !== "{}" && shown].filter(Boolean).map(visible).join("  ");
  item.append(part("span", "name", visible(event.name)), time);
  if (rest) item.append(part("span", "rest", rest));
  return item;
}

// Positions are dense, so the last one is also how many events there are.
let position = 0;

function show(event, properties, isNew) {
  if (event.position <= position) return;
  position = event.position;
  nodes.list.prepend(row(event, properties, isNew));
  while (nodes.list.children.length > SHOWN_MAX) nodes.list.lastElementChild.remove();
}

function showCount() {
  nodes.count.textContent = position ? `· ${position.toLocaleString()} stored` : "";
  nodes.empty.hidden = position > 0;
  if (position) say("arrived", "The collector is running, and events arrive.");
  else say("waiting", "The collector is running and waits for the first event.");
}

// Server-sent events over fetch, because EventSource can't carry a key in a header.
async function* messages(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const text of parts) {
      const message = { event: "message", data: "" };
      for (const line of text.split("\n")) {
        const [, field, content] = line.match(/^(event|data): ?(.*)$/) ?? [];
        if (field) message[field] = content;
      }
      yield message;
    }
  }
}

async function follow(signal) {
  const latest = await (await ask(`/v1/events?limit=${SHOWN_MAX}`, signal)).text();
  const properties = exact(latest).events.map((event) => event.properties);
  JSON.parse(latest).events.map((event, i) => [event, properties[i]]).reverse()
    .forEach(([event, of]) => show(event, of, false));
  nodes.keys.hidden = true;
  nodes.events.hidden = false;
  showCount();
  const tail = await ask("/v1/events/tail", signal, { "Last-Event-ID": String(position) });
  for await (const message of messages(tail.body)) {
    if (message.event === "problem") {
      const problem = JSON.parse(message.data);
      throw new Refused(problem.status, problem, "secret");
    }
    if (message.event !== "event") continue;
    show(JSON.parse(message.data), exact(message.data).properties, true);
    showCount();
  }
}

let current = new AbortController();

async function start() {
  current.abort();
  const mine = current = new AbortController();
  position = 0;
  nodes.list.replaceChildren();
  showSending();
  for (let wait = RETRY_MS.first; !mine.signal.aborted; wait = Math.min(wait * 2, RETRY_MS.most)) {
    try {
      await checkKeys(mine.signal);
      if (!key("secret")) return askForKeys();
      await follow(mine.signal);
      wait = RETRY_MS.first / 2;
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error.code === "invalid_cursor") return start();
      if (error.final) {
        sessionStorage.removeItem(error.kind);
        showSending();
        say("wrong", `The collector is running, but the ${error.kind} key can't be used.`);
        return askForKeys(`The ${error.kind} key: ${error.message}.`);
      }
      const why = error instanceof Refused ? error.message : "it does not answer";
      say("wrong", `The collector can't be read at the moment (${why}); trying again.`);
    }
    await new Promise((done) => setTimeout(done, wait));
  }
}

async function copyLine() {
  try {
    await navigator.clipboard.writeText(nodes.curl.textContent);
    nodes.copy.textContent = "Copied";
  } catch {
    // Without TLS, browsers give the clipboard to localhost alone: select the line, the user copies it.
    getSelection().selectAllChildren(nodes.curl);
    nodes.copy.textContent = "Selected";
  }
  setTimeout(() => { nodes.copy.textContent = "Copy"; }, 2000);
}

async function showVersion() {
  const response = await fetch("/version").catch(() => null);
  if (!response?.ok) return;
  const { name, version, protocol } = await response.json();
  nodes.version.textContent = `${name} ${version}, protocol ${protocol}`;
}

nodes.copy.addEventListener("click", copyLine);
nodes.forget.addEventListener("click", () => { sessionStorage.clear(); start(); });
nodes.form.addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  for (const kind of ["write", "secret"]) sessionStorage.setItem(kind, nodes[kind].value.trim());
  start();
});
addEventListener("hashchange", () => { takeKeys(); start(); });

takeKeys();
showVersion();
start();
