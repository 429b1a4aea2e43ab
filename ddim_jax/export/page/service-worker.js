// Keeps the page for use without a network, and lets it use threads where its server says nothing.

const FILES = __FILES__, ISOLATED = __ISOLATED__;
const OWN = `ddim_jax ${self.registration.scope} `, VERSION = `${OWN}__VERSION__`;

self.addEventListener("install", (event) => {
  const files = FILES.map((file) => new Request(file, { cache: "reload" })); // none of an older page
  const keep = caches.open(VERSION).then((cache) => cache.addAll(files));
  event.waitUntil(keep.then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  const forget = async () => {
    for (const name of await caches.keys()) {
      if (name.startsWith(OWN) && name !== VERSION) await caches.delete(name);
    }
    await self.clients.claim();
  };
  event.waitUntil(forget());
});

/** The answer with the headers that SharedArrayBuffer, and so threads, need. */
function isolated(answer) {
  if (!ISOLATED || answer.type === "opaque" || !answer.ok) return answer;
  const headers = new Headers(answer.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Resource-Policy", "same-origin");
  const { status, statusText } = answer;
  return new Response(answer.body, { status, statusText, headers });
}

async function answer(request) {
  const cache = await caches.open(VERSION);
  const kept = await cache.match(request, { ignoreSearch: true });
  if (kept) return isolated(kept);
  const fresh = await fetch(request);
  if (fresh.ok) await cache.put(request, fresh.clone()).catch(() => {}); // there may be no room
  return isolated(fresh);
}

self.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method === "GET" && url.startsWith("http")) event.respondWith(answer(event.request));
});
