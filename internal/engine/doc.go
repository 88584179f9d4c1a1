// Package engine asks the Docker API what the plugin calls do not tell: the
// names of networks, and which endpoints Docker still knows.
//
// Only calls that take no container's lock are used, because the plugin is
// called with such locks held: `GET /networks`, `GET /networks/{id}`, events,
// and kill, which only Reconcile sends. The API is not served while dockerd
// boots and starts containers, so nothing may depend on an answer in time.
package engine
