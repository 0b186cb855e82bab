// Load from k6: `k6 run --env URL=http://localhost:3000 --vus 16 --duration 1m benchmarks/k6.js`.
// k6 reads no streams: the times are those that the server measures and gives in headers.
import http from "k6/http";
import { check } from "k6";
import { Counter, Trend } from "k6/metrics";

const URL = __ENV.URL || "http://localhost:3000";
const TOKENS = Number(__ENV.TOKENS || 64);
const headers = { "Content-Type": "application/json" };
if (__ENV.API_KEY) headers.Authorization = `Bearer ${__ENV.API_KEY}`;

const tokens = new Counter("generated_tokens");
const queue = new Trend("queue_time", true);
const perToken = new Trend("time_per_token", true);

export const options = {
  vus: 4,
  duration: "30s",
  thresholds: { checks: ["rate==1"] },
};

export default function () {
  // A prompt of its own each time: the cache of prefixes would make the others too fast.
  const inputs = `${__VU} ${__ITER}: What is a violin?`;
  const parameters = { max_new_tokens: TOKENS, details: true };
  const answer = http.post(`${URL}/generate`, JSON.stringify({ inputs, parameters }), { headers });
  if (check(answer, { "status is 200": ({ status }) => status === 200 })) {
    tokens.add(answer.json("details.generated_tokens"));
    queue.add(Number(answer.headers["X-Queue-Time"]));
    perToken.add(Number(answer.headers["X-Time-Per-Token"]));
  }
}
