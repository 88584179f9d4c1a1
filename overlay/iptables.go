package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/particle-net/particle/internal/fault"
)

// Docker sets the policy of iptables' FORWARD chain to DROP, and an accept in
// our table does not outweigh a drop in another. So the host's own iptables is
// asked to let uplinks pass: only it knows whether the host uses the nf_tables
// or the legacy variant. Our table's rules still hold; see hostRules.

// userChain is Docker's chain for rules of others; Docker passes through it
// first and never clears it.
const userChain = "DOCKER-USER"

const forwardChain = "FORWARD"

// passes are the accept rules, as iptables arguments.
func passes() [][]string {
	const wildcard = uplinkPrefix + "+"
	note := []string{"-m", "comment", "--comment", tableName, "-j", "ACCEPT"}
	return [][]string{
		append([]string{"-i", wildcard}, note...),
		append([]string{"-o", wildcard, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"}, note...),
	}
}

// errNoIptables says that the host has no iptables, hence no policy set by it.
var errNoIptables = errors.New("no iptables on this host")

// ensureAccepted inserts the accept rules where they are missing.
func (h *Host) ensureAccepted(ctx context.Context) (changed bool, err error) {
	if !h.accepted.IsZero() && time.Since(h.accepted) < h.opts.AcceptEvery {
		return false, nil
	}
	defer func() {
		if err == nil {
			h.accepted = time.Now()
		}
	}()
	target := userChain
	_, err = h.iptables(ctx, "-S", userChain)
	switch {
	case errors.Is(err, errNoIptables):
		return false, nil
	case err != nil:
		target = forwardChain
	}
	for _, pass := range passes() {
		if _, err := h.iptables(ctx, append([]string{"-C", target}, pass...)...); err == nil {
			continue
		}
		if _, err := h.iptables(ctx, append([]string{"-I", target}, pass...)...); err != nil {
			return changed, &fault.Error{Op: "accept forwarding from uplinks", On: target, Err: err,
				Fix: "run `iptables -S` on the host and mend what it reports"}
		}
		changed = true
	}
	return changed, nil
}

// withdrawAccepted deletes the accept rules, however often they are there.
func (h *Host) withdrawAccepted(ctx context.Context) error {
	var errs []error
	for _, target := range []string{userChain, forwardChain} {
		for _, pass := range passes() {
			for {
				if _, err := h.iptables(ctx, append([]string{"-C", target}, pass...)...); err != nil {
					break // not there, nor is perhaps the chain, or iptables
				}
				if _, err := h.iptables(ctx, append([]string{"-D", target}, pass...)...); err != nil {
					errs = append(errs, err)
					break
				}
			}
		}
	}
	return errors.Join(errs...)
}

// iptables runs the host's binary in the host's root and network namespace.
func (h *Host) iptables(ctx context.Context, args ...string) (string, error) {
	binary, err := h.findIptables()
	if err != nil {
		return "", err
	}
	// -w waits for other users of iptables, here up to five seconds.
	cmd := exec.CommandContext(ctx, binary, append([]string{"-w", "5"}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Dir = "/"
	if h.opts.HostRoot != "" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: h.opts.HostRoot}
	}
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	// A child starts in the namespace of the thread that starts it.
	err = enter(h.root.file, cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return "", fmt.Errorf("iptables %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}

// findIptables gives the binary's path as seen from the host's root. Links are
// not followed here, for absolute ones would be followed in our own root.
func (h *Host) findIptables() (string, error) {
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"} {
		path := dir + "/iptables"
		_, err := os.Lstat(filepath.Join(h.opts.HostRoot, path))
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return "", err
		}
	}
	return "", errNoIptables
}
