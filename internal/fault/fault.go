package fault

import (
	"errors"
	"strings"
)

// Error is an error a person can act on. Op and Err are set always; On and Fix
// may be empty. Errors are compared by their cause: errors.Is and errors.As see
// through to Err.
type Error struct {
	Op  string // what was being done: "create network"
	On  string // to what: a name, an id, an address
	Err error  // why it did not work
	Fix string // what the reader can do, as an imperative without a full stop
}

// New returns an Error whose cause is a plain text.
func New(op, on, cause, fix string) *Error {
	return &Error{Op: op, On: on, Err: errors.New(cause), Fix: fix}
}

// Error renders "op on: cause; fix".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.On != "" {
		b.WriteByte(' ')
		b.WriteString(e.On)
	}
	b.WriteString(": ")
	b.WriteString(e.Err.Error())
	if e.Fix != "" {
		b.WriteString("; ")
		b.WriteString(e.Fix)
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }
