package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/particle-net/particle/internal/lab"
)

// etcdctl is the administrator's tool of an etcd: on a node, with files of that.
type etcdctl struct {
	node                 *lab.Node
	endpoint             string
	authority, cert, key string // empty without TLS
	user                 string // name:password; empty without users
}

// environ is how the tool is told where etcd is.
func (c etcdctl) environ() []string {
	env := []string{"ETCDCTL_API=3", "ETCDCTL_ENDPOINTS=" + c.endpoint}
	if c.authority != "" {
		env = append(env, "ETCDCTL_CACERT="+c.authority, "ETCDCTL_CERT="+c.cert, "ETCDCTL_KEY="+c.key)
	}
	if c.user != "" {
		env = append(env, "ETCDCTL_USER="+c.user)
	}
	return env
}

func (c etcdctl) run(ctx context.Context, args ...string) (string, error) {
	argv := append([]string{"env"}, c.environ()...)
	return c.node.Exec(ctx, append(append(argv, "etcdctl"), args...)...)
}

// revision counts what was ever written.
func (c etcdctl) revision(ctx context.Context) (int64, error) {
	out, err := c.run(ctx, "get", "any", "--write-out", "json")
	if err != nil {
		return 0, err
	}
	var reply struct{ Header struct{ Revision int64 } }
	if err := json.Unmarshal([]byte(out), &reply); err != nil {
		return 0, fmt.Errorf("%s: %w", out, err)
	}
	return reply.Header.Revision, nil
}

// compact has the store forget all changes up to now.
func (c etcdctl) compact(ctx context.Context) error {
	revision, err := c.revision(ctx)
	if err == nil {
		_, err = c.run(ctx, "compact", "--physical", strconv.FormatInt(revision, 10))
	}
	return err
}

// settle lets the ten minutes pass in which hosts claim again what the store has
// lost: the keys that say so would go by themselves then.
func (c etcdctl) settle(ctx context.Context) error {
	keys, err := c.run(ctx, "get", "--prefix", "--keys-only", "/particle/v1/")
	if err != nil {
		return err
	}
	for _, key := range strings.Fields(keys) {
		if !strings.HasSuffix(key, "/restored") && !strings.HasSuffix(key, "/settling") {
			continue
		}
		if _, err := c.run(ctx, "del", key); err != nil {
			return err
		}
	}
	return nil
}

// cmdSettle lets that time pass for the store that the host serves.
func cmdSettle(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(ownStore{sessionOf(ts).bed}.ctl().settle(context.Background()))
}
