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
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/particle-net/particle/internal/fault"
)

// Docker sets the policy of iptables' FORWARD chain to DROP, and an accept in
// our table does not outweigh a drop in another. So the host's own iptables is
// asked to let uplinks pass: only it knows whether the host uses the nf_tables
// or the legacy variant. Our table's rules still hold; see hostRules.

// The programs, one for each IP version.
const (
	iptables  = "iptables"
	ip6tables = "ip6tables"
)

// Our rules stand in FORWARD, right behind Docker's chain for rules of its users. In
// that chain they would outrun what a user drops there, which is to hold for our
// networks as for Docker's, or not be reached, where a user's rules return early; and
// whoever clears FORWARD takes the way into the chain and leaves the chain.
const (
	forwardChain = "FORWARD"
	userChain    = "DOCKER-USER"
)

// passes are the accept rules, as iptables arguments.
func passes() [][]string {
	const wildcard = uplinkPrefix + "+"
	note := []string{"-m", "comment", "--comment", tableName, "-j", "ACCEPT"}
	return [][]string{
		append([]string{"-i", wildcard}, note...),
		append([]string{"-o", wildcard, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"}, note...),
	}
}

// errNoIptables says that the host lacks the program, hence a policy set by it.
var errNoIptables = errors.New("no iptables on this host")

// ensureAccepted inserts the accept rules of one program where they are missing.
func (h *Host) ensureAccepted(ctx context.Context, program string) (changed bool, err error) {
	if last, seen := h.accepted[program]; seen && time.Since(last) < h.opts.AcceptEvery {
		return false, nil
	}
	defer func() {
		if err == nil {
			h.accepted[program] = time.Now()
		}
	}()
	rules, err := h.iptables(ctx, program, "-S", forwardChain)
	switch {
	case errors.Is(err, errNoIptables):
		return false, nil
	case err != nil:
		return false, acceptError(program, err)
	}
	place := behindUserChain(rules)
	for _, pass := range passes() {
		if _, err := h.iptables(ctx, program, append([]string{"-C", forwardChain}, pass...)...); err == nil {
			continue
		}
		if _, err := h.iptables(ctx, program, append([]string{"-I", forwardChain, place}, pass...)...); err != nil {
			return changed, acceptError(program, err)
		}
		changed = true
	}
	users, err := h.iptables(ctx, program, "-S", userChain)
	if err != nil || !strings.Contains(users, uplinkPrefix+"+") {
		return changed, nil // most often there is no such chain
	}
	for _, pass := range passes() { // which earlier versions put there
		if err := h.withdraw(ctx, program, userChain, pass); err != nil {
			return changed, acceptError(program, err)
		}
	}
	return changed, nil
}

// behindUserChain is the place in FORWARD, whose rules are given as -S lists them, behind
// the jump to Docker's chain: the first if there is none.
func behindUserChain(rules string) string {
	place := 1
	for line := range strings.Lines(rules) {
		if !strings.HasPrefix(line, "-A ") {
			continue // the policy
		}
		place++
		if strings.TrimSpace(line) == "-A "+forwardChain+" -j "+userChain {
			return strconv.Itoa(place)
		}
	}
	return "1"
}

func acceptError(program string, err error) error {
	return &fault.Error{Op: "accept forwarding from uplinks", On: forwardChain, Err: err,
		Fix: "run `" + program + " -S` on the host and mend what it reports"}
}

// withdrawAccepted deletes the accept rules, however often they are there.
func (h *Host) withdrawAccepted(ctx context.Context) error {
	clear(h.accepted)
	var errs []error
	for _, program := range []string{iptables, ip6tables} {
		for _, target := range []string{userChain, forwardChain} {
			for _, pass := range passes() {
				errs = append(errs, h.withdraw(ctx, program, target, pass))
			}
		}
	}
	return errors.Join(errs...)
}

func (h *Host) withdraw(ctx context.Context, program, target string, pass []string) error {
	for {
		if _, err := h.iptables(ctx, program, append([]string{"-C", target}, pass...)...); err != nil {
			return nil // not there, nor is perhaps the chain, or the program
		}
		if _, err := h.iptables(ctx, program, append([]string{"-D", target}, pass...)...); err != nil {
			return err
		}
	}
}

// iptables runs the host's program in the host's root and network namespace.
func (h *Host) iptables(ctx context.Context, program string, args ...string) (string, error) {
	binary, err := h.findIptables(program)
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
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}

// findIptables gives the program's path as seen from the host's root. Links are
// not followed here, for absolute ones would be followed in our own root.
func (h *Host) findIptables(program string) (string, error) {
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"} {
		path := dir + "/" + program
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
