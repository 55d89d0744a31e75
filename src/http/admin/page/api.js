// Calls to the operator's API. A refusal is an Error with the gateway's own words; one for want of a login also tells the
// page, which asks for one.

/** Tells that somebody has to log in. */
export const gate = new EventTarget();

export class Refusal extends Error {
  constructor(status, words) {
    super(words);
    this.status = status;
  }
}

export const get = (path, options) => call("GET", path, undefined, options);
export const post = (path, body) => call("POST", path, body);
export const remove = (path) => call("DELETE", path);

/** The path of a backend's act. */
export const actOn = (backend, act, options = {}) => {
  const given = Object.entries(options).filter(([, value]) => value !== undefined && value !== "");
  const query = new URLSearchParams(given).toString();
  return `backends/${encodeURIComponent(backend)}/${act}${query ? `?${query}` : ""}`;
};

async function call(method, path, body, options = {}) {
  const head = body === undefined ? {} : { headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const reply = await reach(`/admin/api/${path}`, { method, ...head, ...options });
  const answer = reply.status === 204 ? null : await reply.json().catch(() => null);
  if (reply.ok) return answer;
  if (reply.status === 401 && path !== "session") gate.dispatchEvent(new Event("login"));
  throw new Refusal(reply.status, answer?.error?.message ?? `the gateway answered ${reply.status}`);
}

async function reach(path, options) {
  try {
    return await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    throw new Refusal(0, error.name === "TimeoutError" ? "the gateway does not answer" : "the gateway cannot be reached");
  }
}
