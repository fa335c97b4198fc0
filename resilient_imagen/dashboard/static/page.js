// The page: receives snapshots as Server-Sent Events, and shows the latest one.

import { showMinutes } from "./charts.js";
import { endButton, routeButtons, setReach, startControls } from "./controls.js";
import { byId, listSentences, make, number, reconcile, setText, time } from "./elements.js";

const SILENT = 5000; // milliseconds without data after which the page says so
const AGAIN = 3000; // milliseconds until a refused stream is asked for again
const VERDICTS = { ok: "OK", degraded: "DEGRADED", down: "DOWN", unknown: "NO DATA" };
const ICONS = { ok: "✓", degraded: "▲", down: "✕", unknown: "?" };

let configuration = { controls: false, jaeger_url: null };
let stream = null;
let heard = Date.now();

function connect() {
  stream?.close();
  if (document.hidden) { // browsers allow few connections to one address; a hidden page needs none
    stream = null;
    return;
  }
  const opened = new EventSource("events");
  stream = opened;
  opened.onmessage = (event) => {
    heard = Date.now();
    show(JSON.parse(event.data));
  };
  opened.onerror = () => {
    if (opened.readyState === EventSource.CLOSED) {
      setTimeout(() => { if (stream === opened) connect(); }, AGAIN);
    }
  };
}

function show(view) {
  if (view.error !== undefined) {
    setLive("no", "no data");
    setStatus("unknown", view.error);
    return;
  }
  setLive("yes", "live");
  setText(byId("scope"), view.scope);
  setStatus(view.status, view.headline);
  listSentences(byId("notices"), view.notices);
  showRoutes(view.routes);
  byId("hour").hidden = view.minutes === null;
  if (view.minutes !== null) showMinutes(view.minutes);
  showHappened("fallbacks", view.fallbacks, "No fallback in the last hour.");
  showHappened("changes", view.changes, "No change is known.");
  listSentences(byId("queues"), view.queues.map(queueSentence), "No queue is known.");
  byId("hedging-part").hidden = view.hedging === null;
  if (view.hedging !== null) setText(byId("hedging"), hedgingSentence(view.hedging));
  setReach(view.orders_reach);
  showOrders(view.orders);
  byId("workers-part").hidden = view.workers.length === 0;
  listSentences(byId("workers"), view.workers);
}

function setStatus(status, headline) {
  byId("banner").dataset.status = status;
  setText(byId("verdict"), `${ICONS[status]} ${VERDICTS[status]}`);
  setText(byId("headline"), headline);
  document.title = `${VERDICTS[status]} · Image generation`;
}

function setLive(live, text) {
  byId("live").dataset.live = live;
  setText(byId("live"), text);
}

function showRoutes(routes) {
  const serving = routes.find((route) => route.state === "closed");
  reconcile(byId("routes"), routes, (route) => route.route, createRoute, (card, route) => {
    const label = stateLabel(route, route === serving);
    card.dataset.state = label;
    setText(card.querySelector(".state"), label);
    setText(card.querySelector(".since"),
      route.since_s === null ? "" : `for ${time(route.since_s)}`);
    setText(card.querySelector(".cause"), causeSentence(route));
    setText(card.querySelector(".probe"), probeSentence(route));
    setText(card.querySelector(".window"), route.state === "off" ? "" :
      `${route.window_failures} of ${route.window_calls} recent requests failed, ` +
      `${route.in_a_row}${route.fail_max === null ? "" : ` of ${route.fail_max}`} in a row`);
  });
}

function createRoute(route) {
  const card = make("li");
  const heading = make("h3");
  const [provider, ...model] = route.route.split(":");
  heading.append(make("span", "provider", provider), make("span", "model", model.join(":")));
  const state = make("p", "state-line");
  state.append(make("strong", "state"), " ", make("span", "since"));
  card.append(heading, state, make("p", "cause"), make("p", "probe"), make("p", "window"));
  if (configuration.controls) card.append(routeButtons(route.route));
  return card;
}

function stateLabel(route, serves) {
  switch (route.state) {
    case "closed": return serves ? "serving" : "standby";
    case "open": return route.held === "open" ? "held open" : "out";
    case "half_open": return "probing";
    case "forced_open": return "held open";
    default: return route.state;
  }
}

function causeSentence(route) {
  if (route.held === "closed") return "held closed by an operator";
  if (route.cause === null) return "";
  return route.state === "off" || route.cause.startsWith("by ") ? route.cause : `cause: ${route.cause}`;
}

function probeSentence(route) {
  if (route.state === "half_open") return "a probe decides now";
  if (route.state !== "open" && route.state !== "forced_open") return "";
  if (route.next_probe_s === null) {
    return route.state === "open" ? "the next request is a probe" : "";
  }
  const what = route.held === "open" || route.state === "forced_open" ? "ends" : "next probe";
  return `${what} in ${time(Math.ceil(route.next_probe_s))}`;
}

function showHappened(id, entries, ifEmpty) {
  byId(`${id}-part`).hidden = entries === null;
  if (entries === null) return;
  const shown = entries.length ? entries : [{ sentence: ifEmpty, count: 0, traces: [] }];
  const keyOf = (entry) => [entry.sentence, ...entry.traces].join(" ");
  reconcile(byId(id), shown, keyOf, createEntry, (row, entry) => {
    setText(row.querySelector(".age"), entry.count ? `${time(entry.age_s)} ago` : "");
    setText(row.querySelector(".count"), entry.count > 1 ?
      `${number(entry.count)} times in ${time(entry.first_age_s - entry.age_s)}` : "");
  });
}

function createEntry(entry) {
  const row = make("li");
  row.append(make("span", "age"), " ", make("span", "sentence", entry.sentence), " ",
    make("span", "count"));
  for (const trace of entry.traces) row.append(" ", traceElement(trace));
  return row;
}

function traceElement(trace) {
  if (configuration.jaeger_url === null) return make("code", "trace", trace);
  const link = make("a", "trace", `trace ${trace.slice(0, 8)}`);
  link.href = `${configuration.jaeger_url}/trace/${trace}`;
  link.rel = "noreferrer noopener";
  link.target = "_blank";
  return link;
}

function queueSentence(queue) {
  const parts = [`${queue.waiting} waiting`];
  if (queue.in_flight !== null) parts.push(`${queue.in_flight} of ${queue.max_concurrent} in flight`);
  if (queue.per_minute !== null) parts.push(`at most ${number(queue.per_minute)} a minute`);
  if (queue.next_s !== null) parts.push(`next place in ${time(Math.ceil(queue.next_s))}`);
  return `${queue.provider}: ${parts.join(", ")}`;
}

function hedgingSentence(hedging) {
  const share = hedging.calls_last_hour ? hedging.hedged_last_hour / hedging.calls_last_hour : 0;
  return `${hedging.hedged_last_hour} of ${hedging.calls_last_hour} calls of the last hour were ` +
    `hedged (${percent(share)}; budget ${percent(hedging.budget)}). ` +
    `${hedging.in_background} requests go on after their call.`;
}

function percent(share) {
  return `${number(Math.round(share * 1000) / 10)} %`;
}

function showOrders(orders) {
  const shown = orders.length ? orders : [null];
  reconcile(byId("orders"), shown, (order) => order?.order ?? "none", createOrder, (row, order) =>
    setText(row.firstChild, order === null ? "None is in force." : orderSentence(order)));
}

function createOrder(order) {
  const row = make("li");
  row.append(make("span"));
  if (order !== null && configuration.controls) row.append(" ", endButton(order));
  return row;
}

function orderSentence(order) {
  const parts = [`${order.order}, by ${order.by}`, `${time(order.left_s)} left`];
  if (order.why) parts.push(order.why);
  if (order.obeyed !== null) parts.push(order.obeyed);
  return parts.join("; ");
}

setInterval(() => {
  if (stream && Date.now() - heard > SILENT) {
    setLive("no", "no connection");
    setStatus("unknown", "The application does not answer. What follows is its last state.");
  }
}, 1000);
document.addEventListener("visibilitychange", () => { heard = Date.now(); connect(); });
configuration = await (await fetch("configuration")).json();
if (configuration.controls) startControls(configuration.variables);
connect();
