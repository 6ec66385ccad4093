export { Client, connect, PublishError, RefusedError } from "./client.js";
export type { ClientOptions, JoinOptions, WebSocketLike } from "./client.js";
export { Core } from "./core.js";
export type { Link, Resume } from "./core.js";
export { Message } from "./events.js";
export type {
  Event, Events, Expected, GapReason, Level, Page, Presence, Published, PublishFailure, Range, Reason, Refusal,
  RosterForm, RosterPage, StateEntry, StateForm, StatePage, Welcome,
} from "./events.js";
export { Membership } from "./membership.js";
export type { Publishing } from "./producer.js";
export { ClientError } from "./session.js";
export type { CoreOptions } from "./session.js";
export { SharedState } from "./state.js";
export type { StateChanges } from "./state.js";
