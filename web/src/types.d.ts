/** Shapes shared by the page's modules: what the server sends, and what this browser keeps. */

// What the server sends -------------------------------------------------------------------------

export interface SamplingDefaults {
  temperature?: number;
  top_p?: number;
  top_k?: number;
  min_p?: number;
  repetition_penalty?: number;
  max_tokens?: number | null;
}

/** One entry of /v1/models. */
export interface ModelInfo {
  id: string;
  created?: number;
  gemmule?: {
    context_length?: number;
    parameters?: number;
    quantization?: string | null;
    defaults?: SamplingDefaults;
    card?: boolean;
    loaded?: boolean;
  };
}

export interface ApiTokenChoice {
  token: string;
  logprob: number;
  bytes: number[] | null;
}

export interface ApiToken extends ApiTokenChoice {
  top_logprobs?: ApiTokenChoice[];
}

/** llama.cpp's names; milliseconds and tokens per second. */
export interface Timings {
  prompt_n?: number;
  prompt_ms?: number;
  prompt_per_second?: number;
  predicted_n?: number;
  predicted_ms?: number;
  predicted_per_second?: number;
  cache_n?: number;
}

/** What a request used. The figures are null where the machine has no meter; boundary says why. */
export interface Energy {
  joules: number | null;
  gco2e: number | null;
  boundary: string | null;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens?: number;
  prompt_tokens_details?: { cached_tokens?: number } | null;
}

/** Tokens of the prompt: all, taken from the cache, and read so far (cached ones included). */
export interface PromptProgress {
  total: number;
  cache: number;
  processed: number;
}

export interface ApiMessage {
  role: "system" | "user" | "assistant";
  content: string;
}

/** One thing that happened in a streamed answer. */
export type StreamEvent =
  | { type: "text"; text: string; tokens: Token[] }
  | { type: "progress"; progress: PromptProgress }
  | { type: "finish"; reason: string; timings: Timings | null; energy: Energy | null }
  | { type: "usage"; usage: Usage };

// What this browser keeps -----------------------------------------------------------------------

/** Sampling settings of a conversation. A missing one is not sent: the server's default holds. */
export interface Sampling {
  temperature?: number;
  top_p?: number;
  top_k?: number;
  min_p?: number;
  repetition_penalty?: number;
  seed?: number;
  max_tokens?: number;
}

export interface TokenChoice {
  text: string;
  logprob: number;
  /** UTF-8 bytes, only where the token is not whole characters. */
  bytes?: number[];
}

export interface Token extends TokenChoice {
  alternatives: TokenChoice[];
  /** True for a token that the user chose among the alternatives. */
  chosen?: boolean;
}

/** One request's part of an answer: the text from `start` to the next run or the end. */
export interface Run {
  model: string;
  sampling: Sampling;
  /** The system prompt it was asked with. */
  system: string;
  /** UTF-16 offset in the answer's content. */
  start: number;
  tokens: Token[];
  /** OpenAI's finish reason, or "cancelled", "interrupted", "error", "branched". Null: running. */
  finish: string | null;
  timings: Timings | null;
  energy: Energy | null;
  usage: Usage | null;
  /** Tokens of the context that were taken when it broke off: then there is no usage. */
  taken?: number;
}

export interface TextFile {
  name: string;
  text: string;
}

export interface Message {
  id: string;
  /** Id of the message this one follows; null for a conversation's first. */
  parent: string | null;
  role: "user" | "assistant";
  content: string;
  /** Milliseconds since 1970. */
  created: number;
  /** Text files sent with a user's message. */
  files?: TextFile[];
  /** An answer's requests, in the order of its text. */
  runs?: Run[];
  /** Answers with the same pair id were asked for together, side by side. */
  pair?: string;
  /** The user changed the answer's text. */
  edited?: boolean;
  error?: StoredError | null;
}

export interface StoredError {
  message: string;
  status: number | null;
  retryAfter: number | null;
}

/** A conversation without its messages, as the list needs it. */
export interface Conversation {
  id: string;
  title: string;
  /** True once the user has named it: the first message no longer does. */
  named: boolean;
  created: number;
  updated: number;
  system: string;
  sampling: Sampling;
  /** One model, or two whose answers stand side by side. Empty: the server's first. */
  models: string[];
  /** Which child of a message is on the path shown; the key "" is for first messages. */
  selected: Record<string, string>;
}

export interface Draft {
  text: string;
  files: TextFile[];
}
