// Package pluginhttp turns Docker's plugin calls into typed function calls.
//
// Every method of both drivers goes through Handle, which owns what the
// contract with dockerd asks of all of them alike: a bound on time, because
// dockerd sets none after a restart; the refusal of an empty body, because
// dockerd repeats a call after a transport error without it (moby issue 39331);
// the error as JSON with status 500; the one log line of the call; and an end in
// which each call is either answered or not begun.
package pluginhttp
