// Lists what openapi.json says: each path with what it takes and answers, and the shapes that they name.

import { getJson, key } from "./api.js";
import { element } from "./render.js";

const at = (id) => document.getElementById(id);

/** "list of string, or null" and the like, with links to named shapes. */
function typeOf(schema) {
  if (schema === true || !Object.keys(schema).length) return ["anything"];
  if (schema.$ref) return [link(schema.$ref.split("/").pop())];
  const options = schema.anyOf || schema.oneOf || schema.allOf;
  if (options) return options.flatMap((option, place) => [...(place ? [" or "] : []), ...typeOf(option)]);
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(", ")];
  if ("const" in schema) return [JSON.stringify(schema.const)];
  if (schema.type === "array") return ["list of ", ...typeOf(schema.items || {})];
  return [[schema.type, ...limitsOf(schema)].join(" ")];
}

function limitsOf(schema) {
  const names = { minimum: "≥", maximum: "≤", exclusiveMinimum: ">", exclusiveMaximum: "<" };
  return Object.entries(names).filter(([name]) => name in schema).map(([name, sign]) => `${sign} ${schema[name]}`);
}

function link(name) {
  const made = element("a", { href: `#shape-${name}`, textContent: name });
  made.addEventListener("click", () => (at(`shape-${name}`).open = true));
  return made;
}

function shape(name, schema) {
  const rows = Object.entries(schema.properties || {}).map(([field, of]) => {
    const needed = (schema.required || []).includes(field) ? " (required)" : "";
    const cell = element("td", {}, element("code", { textContent: field }), needed);
    return element("tr", {}, cell, element("td", {}, ...typeOf(of)));
  });
  const body = rows.length ? element("table", {}, element("tbody", {}, ...rows)) : element("p", {}, ...typeOf(schema));
  const description = schema.description ? [element("p", { textContent: schema.description })] : [];
  const summary = element("summary", {}, element("code", { textContent: name }));
  return element("details", { id: `shape-${name}` }, summary, ...description, body);
}

function operation(path, method, of) {
  const title = element("summary", {}, element("span", { className: "method", textContent: method.toUpperCase() }));
  title.append(" ", element("code", { textContent: path }), ` ${of.description || of.summary || ""}`);
  const box = element("details", {}, title);
  const taken = of.requestBody?.content["application/json"]?.schema;
  if (taken) box.append(element("p", {}, "Takes ", ...typeOf(taken), "."));
  for (const [status, response] of Object.entries(of.responses || {})) {
    const content = Object.values(response.content || {})[0]?.schema;
    const types = content ? [": ", ...typeOf(content)] : [];
    box.append(element("p", {}, `${status} ${response.description}`, ...types));
  }
  return box;
}

async function show() {
  at("notice").hidden = true;
  try {
    const document_ = await getJson("openapi.json");
    const operations = Object.entries(document_.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, of]) => operation(path, method, of)));
    at("paths").replaceChildren(...operations);
    const shapes = Object.entries(document_.components.schemas).map(([name, schema]) => shape(name, schema));
    at("shapes").replaceChildren(...shapes);
    at("key-form").hidden = true;
  } catch (error) {
    at("notice").textContent = error.message;
    at("notice").hidden = false;
    at("key-form").hidden = error.status !== 401;
  }
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(at("key").value.trim());
  show();
});
show();
