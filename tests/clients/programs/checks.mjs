// What every Node client checks of an answer on its own side, and how a program reports.

export const MODEL = 'gpt-4.1';
export const PIXEL =
  'data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';
export const WEATHER = {
  type: 'object',
  properties: { city: { type: 'string' } },
  required: ['city'],
  additionalProperties: false,
};
// What provokes which refusal: words for the model, another declared tool.
export const FAULTS = {
  500: 'fail: server-error on resume',
  502: 'fail: drop-before-bytes on resume',
};
export const SERVERS = {
  403: { server_label: 'nobody', server_url: 'https://nobody.example/mcp' },
  424: { server_label: 'silent', server_url: 'http://127.0.0.1:9/mcp' },
  503: { server_label: 'branch' },
  vault: { server_label: 'keyless', server_url: 'http://127.0.0.1:9/keyless' },
};
export const OWN = { Authorization: 'Bearer my-own-key' };
export const DRAWN = { 'x-ms-oai-image-generation-deployment': 'my-image-deployment' };
export const SCREEN = {
  type: 'computer_use_preview',
  display_width: 1024,
  display_height: 768,
  environment: 'browser',
};
const AT_ONCE = 4;
export const EXECUTED = 'bank.transfer returned:';
const REASON = 'as tested';
const HIDDEN = ['mcp_approval_request', 'mcp_approval_response', 'tool-approval-request'];
const ENDS = ['response.completed', 'response.failed', 'response.incomplete', 'error'];

export const sleep = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

export function equal(found, wanted, what) {
  const [left, right] = [JSON.stringify(found), JSON.stringify(wanted)];
  if (left !== right) throw new Error(`${what}: ${left}, not ${right}`);
}

export function checkHidden(value) {
  const text = JSON.stringify(value);
  equal(HIDDEN.filter((word) => text.includes(word)), [], 'visible approvals');
}

const range = (first, count) => Array.from({ length: count }, (_, index) => first + index);
const indices = (events, kind) =>
  events.filter((event) => event.type === kind).map((event) => event.output_index);

// A stream without seams; returns its final response.
export function checkEvents(events) {
  equal(events[0].type, 'response.created', 'first event');
  equal(events.map((event) => event.sequence_number), range(0, events.length), 'sequence numbers');
  const whole = events.filter((event) => event.response).map((event) => event.response);
  equal(new Set(whole.map((response) => response.id)).size, 1, 'response ids');
  const ends = events.map((event) => event.type).filter((type) => ENDS.includes(type));
  equal(ends, ['response.completed'], 'ends');
  equal(events.at(-1).type, 'response.completed', 'last event');
  const final = whole.at(-1);
  const added = indices(events, 'response.output_item.added');
  equal(added, range(0, final.output.length), 'indices added');
  equal(indices(events, 'response.output_item.done').sort(), added, 'indices done');
  checkHidden(events);
  return final;
}

// Base64 of a PNG.
export function checkPicture(encoded) {
  equal(Buffer.from(encoded, 'base64').subarray(1, 4).toString(), 'PNG', 'picture');
}

// What an app answers to a `computer_call`.
export const screenshot = (call) => ({
  type: 'computer_call_output',
  call_id: call.call_id,
  output: { type: 'computer_screenshot', image_url: PIXEL },
});

export const textOf = (events) =>
  events
    .filter((event) => event.type === 'response.output_text.delta')
    .map((event) => event.delta)
    .join('');

// The finished answer of a call that was held: one response, and nothing of the hold.
export function checkHeldText(text, denied) {
  equal(denied ? text.includes(REASON) : text.startsWith(EXECUTED), true, `text ${text}`);
}

export function checkHeld(response, text, { denied = false } = {}) {
  equal([response.status, response.error], ['completed', null], 'end');
  const kinds = response.output.map((item) => item.type);
  equal(kinds, denied ? ['mcp_list_tools', 'message'] : ['mcp_list_tools', 'mcp_call', 'message'], 'items');
  checkHeldText(text, denied);
}

class Run {
  constructor(name, [url, key, strict, bank, mute, muteKey]) {
    Object.assign(this, { name, url, key, strict, bank, mute, muteKey, attempts: 0, seen: {} });
    [, this.capability, this.mode] = /\/(.+):(.+)$/.exec(name);
  }

  // A text that makes the model call the bank, recognisable to the reviewer.
  transfer(more = '') {
    const values = { to_account: '0815', amount: 12.5, currency: 'EUR', reference: this.name };
    return `call transfer ${JSON.stringify(values)} ${more}`;
  }

  // The bank, as an app that would rather not be asked declares it.
  tool(changes = {}) {
    const url = `${this.bank}/mcp`;
    return { type: 'mcp', server_label: 'bank', server_url: url, require_approval: 'never', ...changes };
  }

  // The client's options for a refusal, those of the strict app by itself: it is sent no header
  // before the answer is known.
  get refused() {
    const strict = { baseURL: `${this.url}/openai/v1`, apiKey: this.strict };
    const others = {
      401: { apiKey: 'gp_app_nobody' },
      404: { baseURL: `${this.url}/openai/v1/x` },
      503: { baseURL: `${this.mute}/openai/v1`, apiKey: this.muteKey },
    };
    return { ...strict, ...others[this.mode] };
  }

  // A fetch that counts what is posted.
  get fetch() {
    return (address, options = {}) => {
      if ((options.method ?? 'GET').toUpperCase() === 'POST') this.attempts += 1;
      return fetch(address, options);
    };
  }

  keep(response, text) {
    const items = response.output.map((item) => item.type);
    Object.assign(this.seen, { id: response.id, text, items });
  }
}

async function report(run, play) {
  const blank = { id: null, text: null, statuses: [], items: [], approval_callbacks: 0 };
  let error = null;
  try {
    await play(run);
  } catch (problem) {
    const place = (problem?.stack ?? '').split('\n').find((line) => line.includes('.mjs')) ?? '';
    error = `${problem?.name}: ${problem?.message ?? JSON.stringify(problem)} ${place.trim()}`;
  }
  const line = { case: run.name, ok: error === null, ...blank, ...run.seen };
  console.log(JSON.stringify({ ...line, attempts: run.attempts, error }));
}

// `PROGRAM URL KEY STRICT_KEY BANK MUTE_URL MUTE_KEY CASE…`: a few cases at a time, one JSON line for each.
export async function main(plays) {
  const [places, names] = [process.argv.slice(2, 8), process.argv.slice(8)];
  const worker = async () => {
    for (let name = names.shift(); name !== undefined; name = names.shift()) {
      const run = new Run(name, places);
      await report(run, plays[run.capability]);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}
