package main

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
)

// What drifts in the kernel is put right within ten seconds, though a look failed or
// takes a second.
func TestDriftIsLookedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logrus.New()
		log.SetOutput(io.Discard)
		p := &plugin{log: logrus.NewEntry(log)}
		ctx, stop := context.WithCancel(t.Context())
		drifted, looks := time.Now(), 0
		var longest time.Duration
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			p.again(ctx, repairEvery, nil, "repair kernel state", func(context.Context) error {
				begun := time.Now()
				time.Sleep(time.Second)
				longest = max(longest, time.Since(drifted))
				drifted = begun // the worst moment: just after it was looked at
				if looks++; looks%3 == 0 {
					return errors.New("a look that failed")
				}
				return nil
			})
		}()
		time.Sleep(time.Minute)
		stop()
		<-ended
		if looks < 10 || longest > 10*time.Second {
			t.Errorf("%d looks in a minute; drift stayed for %s", looks, longest)
		}
	})
}
