package holder

import (
	"syscall"
	"testing"
)

// Before Linux 5.19 a signal calls the caller away from a bind that succeeds, and it
// asks again. It must not hear that the socket is bound already; others must.
func TestRepeated(t *testing.T) {
	var c container
	one, other := socket{cookie: 1}, socket{cookie: 2}
	c.interrupted(one)
	for i, step := range []struct {
		socket    socket
		have, err syscall.Errno
	}{
		{other, syscall.EINVAL, syscall.EINVAL},
		{one, syscall.EINVAL, 0},
		{one, syscall.EINVAL, syscall.EINVAL}, // the caller has heard
		{one, 0, 0},
	} {
		if got := c.repeated(step.socket, step.have); got != step.err {
			t.Errorf("step %d: %v, want %v", i, got, step.err)
		}
	}
	c.interrupted(one)
	if got := c.repeated(one, syscall.EADDRINUSE); got != syscall.EADDRINUSE {
		t.Errorf("another error: %v", got)
	}
}
