// The service, over HTTP. The token, where one is needed, is kept as long as the tab.

const KEY = "atm-token";
let signingIn = null;

export class Refusal extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `the service answered ${status}`);
    this.status = status;
  }
}

function headers(more) {
  const token = sessionStorage.getItem(KEY);
  return token ? { authorization: `Bearer ${token}`, ...more } : { ...more };
}

async function fetched(path, options = {}) {
  for (;;) {
    const used = sessionStorage.getItem(KEY);
    const response = await fetch(path, { ...options, headers: headers(options.headers), cache: "no-store" });
    if (response.status !== 401) return response;
    await response.body?.cancel();
    if (used === sessionStorage.getItem(KEY)) await signIn(used !== null);
  }
}

export async function request(method, path, body) {
  const options = { method };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { "content-type": "application/json" };
  }
  const response = await fetched(path, options);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refusal(response.status, answer);
  return answer;
}

function signIn(again) {
  signingIn ??= new Promise((resolve) => {
    const dialog = document.getElementById("sign-in");
    const input = document.getElementById("token");
    document.getElementById("sign-in-error").textContent = again ? "The service doesn't know this token." : "";
    input.value = "";
    const submitted = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, input.value.trim());
      dialog.close();
    };
    const closed = () => {
      dialog.firstElementChild.removeEventListener("submit", submitted);
      signingIn = null;
      resolve();
    };
    dialog.firstElementChild.addEventListener("submit", submitted);
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", closed, { once: true });
    dialog.showModal();
  });
  return signingIn;
}

// Server-sent events by hand: EventSource can't send a token.
export async function follow(onSnapshot, onLost) {
  for (let pause = 500; ; pause = Math.min(pause * 2, 8000)) {
    try {
      const response = await fetched("/events");
      if (!response.ok) throw new Error(`the service answered ${response.status}`);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        const parts = text.split("\n\n");
        text = parts.pop();
        for (const part of parts) {
          const line = part.split("\n").find((each) => each.startsWith("data: "));
          if (line) {
            onSnapshot(JSON.parse(line.slice(6)));
            pause = 500;
          }
        }
      }
    } catch {
      // told below
    }
    onLost();
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}
