package membership

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// refuser is a server that gives nobody another certificate.
type refuser struct{ asked atomic.Int32 }

func (r *refuser) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	r.asked.Add(1)
	w.WriteHeader(http.StatusTooEarly)
	_ = json.NewEncoder(w).Encode(map[string]string{"cause": "too early", "fix": "wait"})
}

// dueMember is a member of the refuser's cluster whose certificate is due and whose files
// are in dir.
func dueMember(t *testing.T, dir string) (*Membership, *current, *refuser) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	authority, err := enrol.NewAuthority(time.Now())
	must(err)
	f, of := files{dir}, files{t.TempDir()}
	issue := func(f files, s enrol.Subject, age time.Duration) *identity {
		key, request, err := enrol.NewKey()
		must(err)
		cert, _, err := authority.Issue(request, s, time.Now().Add(-age))
		must(err)
		for path, content := range map[string][]byte{f.authority(): authority.Certificate(), f.key(): key, f.certificate(): cert} {
			must(os.WriteFile(path, content, 0o600))
		}
		id, err := openIdentity(f)
		must(err)
		return id
	}
	addr := netip.MustParseAddr("127.0.0.1")
	own := issue(f, enrol.Subject{Node: "member", Name: "h2", Address: addr}, 300*24*time.Hour)
	theirs := issue(of, enrol.Subject{Node: "server", Name: "h1", Address: addr, Server: true}, 0)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	r := &refuser{}
	s := &http.Server{Handler: r, TLSConfig: theirs.server(), ErrorLog: quiet()}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.ServeTLS(l, "", "") // it says that it was closed
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-served
	})
	log := logrus.New()
	log.SetOutput(io.Discard)
	m := &Membership{o: Options{Log: logrus.NewEntry(log)}, node: "member"}
	at := netip.MustParseAddrPort(l.Addr().String())
	c := &current{identity: own, record: record{Name: "h2", Address: addr, Servers: []enrol.Host{{ID: topology.NodeID("server"), Name: "h1", Address: at.Addr(), Port: at.Port()}}}}
	return m, c, r
}

// A host that is refused another certificate does not ask again with its next look at
// the servers, and goes on to say why it has none.
func TestRefusedRenewalIsNotRepeated(t *testing.T) {
	m, c, server := dueMember(t, t.TempDir())
	for range 3 {
		if err := m.renewDue(t.Context(), c); !errors.Is(err, enrol.ErrTooEarly) {
			t.Errorf("got %v", err)
		}
	}
	if n := server.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	c.refusedUntil = time.Now().Add(-time.Second)
	if err := m.renewDue(t.Context(), c); !errors.Is(err, enrol.ErrTooEarly) || server.asked.Load() != 2 {
		t.Errorf("after the pause: asked %d times, %v", server.asked.Load(), err)
	}
}

// Tight gives the path, below dir, of a directory in which nobody, and not root, can make
// a file whose name is longer than the one that is given: the kernel takes no such path.
// What is written here has a longer name at first.
func Tight(t *testing.T, dir, longest string) string {
	t.Helper()
	const component = 200
	size := unix.PathMax - 1 - len("/"+longest)
	for len(dir) < size {
		n := min(component, size-len(dir)-1)
		if rest := size - len(dir) - 1 - n; rest == 1 {
			n-- // a name and its separator take two
		}
		dir = filepath.Join(dir, strings.Repeat("d", n))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A certificate that could not be written is not asked for.
func TestUnwritableCertificateIsNotAskedFor(t *testing.T) {
	m, c, server := dueMember(t, Tight(t, t.TempDir(), "node.pem"))
	if err := m.renewDue(t.Context(), c); err == nil || !strings.Contains(err.Error(), "node.pem") || !strings.Contains(err.Error(), "make the directory writable") {
		t.Errorf("got %v", err)
	}
	if n := server.asked.Load(); n != 0 {
		t.Errorf("asked %d times", n)
	}
}

// What is wrong is asked about often, until it is right. That a host was removed will not be.
func TestRemovedHostAsksSeldom(t *testing.T) {
	removed := &fault.Error{Op: "ask the cluster", Err: enrol.ErrRemoved}
	for _, c := range []struct {
		otherwise time.Duration
		err       error
		want      time.Duration
	}{
		{often, nil, often},
		{often, errors.New("it does not answer"), 5 * time.Second},
		{soon, errors.New("it does not answer"), soon},
		{often, removed, often},
		{soon, removed, often}, // a server's own store has ended
	} {
		if got := askAgain(c.otherwise, c.err); got != c.want {
			t.Errorf("after %v: %s, want %s", c.err, got, c.want)
		}
	}
}
