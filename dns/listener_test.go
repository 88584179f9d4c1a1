package dns

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// After half an answer the stream makes no sense to the client any more.
func TestFailedWriteClosesTheConnection(t *testing.T) {
	ours, theirs := net.Pipe()
	l := newListener(nil, 1, time.Second/20)
	l.slots <- struct{}{}
	c := &conn{Conn: ours, of: l}
	if _, err := c.Write([]byte("nobody reads this")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Write = %v, want a timeout", err)
	}
	if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the client's read gives %v, want EOF", err)
	}
	c.Close() // the library closes again, and must not free a second slot
	if len(l.slots) != 0 {
		t.Error("the slot is still taken")
	}
}
