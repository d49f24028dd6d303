// Which model answers: the server's only one, or one of several to choose from.

import { ApiError, getJson } from "./api.js";
import * as store from "./store.js";

const at = (id) => document.getElementById(id);

/** The models of the server, as the head of the page shows them. */
export class Models {
  constructor() {
    this.chosen = null; // null: not known yet, or the server lists none; a request that names none asks for its first
    at("models").addEventListener("change", () => {
      this.chosen = at("models").value;
      store.saveModel(this.chosen);
    });
  }

  /** Ask the server for its models. Throws ApiError, of status 503 where there may be some later. */
  async show() {
    const all = (await getJson("v1/models")).data;
    if (!all.length) throw new ApiError("No upstream lists a model: /health of this gateway says how they are.", 503);
    const names = all.map((one) => one.id);
    const wanted = this.chosen ?? store.loadModel();
    this.chosen = names.includes(wanted) ? wanted : (names[0] ?? null);
    at("models").replaceChildren(...names.map((name) => new Option(name, name, false, name === this.chosen)));
    at("choice").hidden = names.length < 2;
    at("model").textContent = names.length === 1 ? names[0] : "";
    at("live").hidden = all.some(isElsewhere);
  }
}

/** Whether a gateway passes requests for the model on: its own live page shows it, if it has one. */
function isElsewhere(model) {
  return model.owned_by === "pagoda-gateway" && !model.status;
}
