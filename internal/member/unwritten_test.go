package member_test

import (
	"context"
	"errors"
	"testing"
	"time"
)

// A user removes a network while the disk is full and the store away. As soon as the disk
// takes it, it is kept: also a later plugin tells the cluster of it.
func TestRemovedWhileTheDiskIsFull(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		c.store.Cut(true)
		c.disk.fail(true)
		if err := c.Remove(context.Background(), c.find("jobs").Network); !errors.Is(err, errFull) {
			t.Errorf("got %v", err)
		}
		time.Sleep(time.Minute)
		c.disk.fail(false)
		time.Sleep(time.Minute)
		c.kill()
		c.start()
		c.connect()
		time.Sleep(2 * time.Minute)
		w.absent("jobs", "when c, where it was removed, is there again", a, b, c)
	})
}
