package enrol

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logged "github.com/sirupsen/logrus/hooks/test"
)

// Who guesses at many connections at once gets no more attempts than at one.
func TestGuessesAtOnce(t *testing.T) {
	d := newDesk(t)
	if _, err := d.register.TokenInfo(t.Context(), TokenLife); err != nil {
		t.Fatal(err)
	}
	const guesses = 20 * maxFailures
	var looked, refused atomic.Int32
	var all sync.WaitGroup
	start := make(chan struct{})
	for range guesses {
		all.Go(func() {
			<-start
			_, err := d.answer(pathJoin, JoinRequest{Secret: "aaaaaaaaaaaaaaaaaaaaaaaaaa"}, nil)
			var told *denied
			switch {
			case errors.As(err, &told) && told.status == http.StatusForbidden:
				looked.Add(1)
			case errors.As(err, &told) && told.status == http.StatusTooManyRequests:
				refused.Add(1)
			default:
				t.Errorf("a wrong secret: %v", err)
			}
		})
	}
	close(start)
	all.Wait()
	if looked.Load() != maxFailures || refused.Load() != guesses-maxFailures {
		t.Errorf("of %d wrong secrets %d were compared, and %d refused; %d are compared in a minute", guesses, looked.Load(), refused.Load(), maxFailures)
	}
}

// Who is refused again and again does not fill the server's log.
func TestRefusalsAreLoggedSparingly(t *testing.T) {
	log, lines := logged.NewNullLogger()
	h := NewHandler(nil, nil, nil, logrus.NewEntry(log))
	now := time.Now()
	h.now = func() time.Time { return now }
	ask := func(from string, times int) (said int) {
		lines.Reset()
		for range times {
			r := httptest.NewRequest(http.MethodPost, pathState, strings.NewReader("{}"))
			r.RemoteAddr = from
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, r); w.Code != http.StatusUnauthorized {
				t.Fatalf("answered %d", w.Code)
			}
		}
		return len(lines.AllEntries())
	}
	if n := ask("192.0.2.66:9", 1000); n == 0 || n > maxFailures {
		t.Errorf("%d lines for 1000 refusals of one address in a minute", n)
	}
	if n := ask("192.0.2.7:9", 1); n != 1 {
		t.Errorf("%d lines for the first refusal of another address", n)
	}
	if now = now.Add(failureSpan + time.Second); ask("192.0.2.66:9", 1) != 1 {
		t.Error("nothing is told in the next minute")
	}
}
