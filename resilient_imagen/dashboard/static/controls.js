// Controls: buttons that give orders, each with a dialog that says what happens and asks for a token.

import { byId, make, setText } from "./elements.js";

const ORDERS = {
  open: ["Open the circuit", "All calls skip it until the order ends."],
  close: ["Close the circuit", "It accepts calls at once, and may trip again. This ends earlier orders about it."],
  hold: ["Hold the circuit closed", "It accepts calls until the order ends, even if requests fail."],
  reset: ["End orders about the route", "Its circuit decides by itself again."],
  set: ["Change a setting", "It has this value until the order ends."],
  unset: ["End the change of a setting", "It has its own value again."],
};

let draft = null; // the order in the dialog
let reach = "";

const dialog = byId("order");
const form = dialog.querySelector("form");
const fields = form.elements;

export function setReach(text) {
  reach = text;
}

// Buttons for the circuit of a route.
export function routeButtons(route) {
  const row = make("p", "buttons");
  for (const [action, label] of [["open", "Open…"], ["close", "Close…"], ["reset", "Reset…"]]) {
    row.append(button(label, `${ORDERS[action][0]}: ${route}`, () => ask(action, route)));
  }
  return row;
}

// A button that ends an order in force.
export function endButton(order) {
  const action = order.action === "set" ? "unset" : "reset";
  return button("End…", `End the order ${order.order}`, () => ask(action, order.target));
}

export function startControls(variables) {
  const setting = byId("setting");
  setting.hidden = false;
  byId("variables").append(...variables.map((name) => new Option(name, name)));
  setting.addEventListener("submit", (event) => {
    event.preventDefault();
    ask("set", setting.elements.variable.value.trim(), setting.elements.value.value);
  });
  form.querySelector("button[value=cancel]").addEventListener("click", () => dialog.close());
  fields.hold.addEventListener("change", () => describe(fields.hold.checked ? "hold" : "close"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
}

function button(text, label, act) {
  const made = make("button", "", text);
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

function ask(action, target, value = null) {
  draft = { target, value };
  fields.hold.checked = fields.even_account.checked = false;
  fields.target.replaceChildren(new Option(target, target));
  const [provider, model] = target.split(":");
  if (model) fields.target.add(new Option(`all routes of ${provider}`, provider));
  setText(byId("order-error"), "");
  describe(action);
  dialog.showModal();
  (fields.by.value ? fields.token : fields.by).focus();
}

function describe(action) {
  draft.action = action;
  const [title, effect] = ORDERS[action];
  const what = draft.value === null ? draft.target : `${draft.target}=${draft.value}`;
  setText(byId("order-title"), `${title}: ${what}`);
  setText(byId("order-effect"), `${effect} It reaches ${reach}.`);
  setText(form.querySelector(".confirm"), title);
  for (const part of form.querySelectorAll("[data-for]")) {
    part.hidden = !part.dataset.for.split(" ").includes(action);
  }
}

async function send() {
  const { action, target, value } = draft;
  const order = { action, by: fields.by.value, why: fields.why.value };
  order.target = action === "set" || action === "unset" ? target : fields.target.value;
  if (action === "set") order.value = value;
  if (action === "open" || action === "hold" || action === "set") {
    order.seconds = Number(fields.seconds.value);
  }
  if (action === "close" || action === "hold") order.even_account = fields.even_account.checked;
  const confirm = form.querySelector(".confirm");
  confirm.disabled = true;
  try {
    const [done, text] = await post(order);
    if (done) {
      setText(byId("answer"), text);
      dialog.close();
    } else setText(byId("order-error"), text);
  } finally {
    confirm.disabled = false;
  }
}

async function post(order) {
  try {
    const answer = await fetch("orders", {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${fields.token.value}` },
      body: JSON.stringify(order),
    });
    const found = await answer.json();
    return answer.ok ? [true, `${found.order}: ${found.answer}.`] : [false, found.error];
  } catch (error) {
    return [false, `No answer: ${error.message}. The order may have been given.`];
  }
}
