// A certified OpenID provider for one test: two people, real password-less forms, real sessions.
// The settings come as one JSON line on standard input; its address goes to standard output.
import { once } from "node:events";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { Provider } from "oidc-provider";

const [line] = await once(createInterface({ input: process.stdin }), "line");
const { port, client, people } = JSON.parse(line);
const issuer = `http://127.0.0.1:${port}`;

const provider = new Provider(issuer, {
  clients: [client],
  claims: { openid: ["sub", "roles", "groups"], email: ["email", "email_verified"], profile: ["name"] },
  conformIdTokenClaims: false,
  cookies: { keys: ["only-for-this-test"] },
  features: {
    devInteractions: { enabled: true },
    rpInitiatedLogout: { enabled: true },
    backchannelLogout: { enabled: true },
  },
  pkce: { required: () => true },
  // Its own one tells nobody on this machine anything.
  fetch: (url, { dispatcher, ...options }) => globalThis.fetch(url, options),
  async findAccount(_ctx, sub) {
    const found = people[sub];
    return found && { accountId: sub, claims: async () => ({ sub, email_verified: true, ...found }) };
  },
});
const server = createServer(provider.callback());
server.listen(port, "127.0.0.1", () => console.log(issuer));
process.stdin.on("end", () => process.exit(0)).resume();
