package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sync/errgroup"

	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/lab"
)

// cmdFollow does what a document tells a user to do: follow FILE SECTION [N] types
// the section's Nth block of commands, by default the first, on a terminal of the
// host that the prompt names, or of the script's. It types what stands there, word
// for word, but for the following:
//
//   - The image IMAGE is that of the tests.
//   - "on each of them" and "on every host", as the first words of a comment, have
//     the line typed on all hosts but the first, and on all, at the same time.
//   - A container's start is repeated until its network has come to the host.
//   - Questions are answered from the script's file "answer", a line each. The token
//     that a command prints for others goes into that file.
//
// etcdctl is the administrator's of the script's etcd, if there is one.
func cmdFollow(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: follow FILE SECTION [N]")
	}
	which := 1
	if len(args) == 3 {
		n, err := strconv.Atoi(args[2])
		ts.Check(err)
		which = n
	}
	text, err := os.ReadFile(filepath.Join("..", args[0]))
	ts.Check(err)
	blocks := commandBlocks(string(text), args[1])
	if which < 1 || which > len(blocks) {
		ts.Fatalf("%s: section %q has %d blocks of commands", args[0], args[1], len(blocks))
	}
	for _, line := range blocks[which-1] {
		ts.Check(followLine(ts, line))
	}
}

// documentedLine is one line of commands in a document: "h1$ COMMAND    # COMMENT".
var documentedLine = regexp.MustCompile(`^    (?:(h[0-9]+)\$ )?(\S.*?)(?:\s+# (.*))?$`)

// commandBlocks are the indented blocks of a section, line by line.
func commandBlocks(text, section string) (blocks [][]string) {
	inside, open := false, false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if title := strings.TrimLeft(line, "#"); title != line {
			inside, open = strings.TrimSpace(title) == section, false
			continue
		}
		switch {
		case !inside || line == "": // an empty line does not end a block
		case !strings.HasPrefix(line, "    "):
			open = false
		case open:
			blocks[len(blocks)-1] = append(blocks[len(blocks)-1], line)
		default:
			blocks, open = append(blocks, []string{line}), true
		}
	}
	return blocks
}

// printedToken is the token in the command that a cluster's first host prints.
var printedToken = regexp.MustCompile(`--token (\S+)`)

func followLine(ts *testscript.TestScript, line string) error {
	parts := documentedLine.FindStringSubmatch(line)
	if parts == nil {
		return fmt.Errorf("%q is no line of a command's own", line)
	}
	prompt, command, comment := parts[1], parts[2], parts[3]
	b := sessionOf(ts).bed
	hosts := []*lab.Host{b.host}
	switch { // a comment may name more than the prompt
	case strings.HasPrefix(comment, "on each of them"):
		hosts = b.lab.Hosts()[1:]
	case strings.HasPrefix(comment, "on every host"):
		hosts = b.lab.Hosts()
	case prompt != "":
		host, err := b.lab.Host(prompt)
		if err != nil {
			return err
		}
		hosts[0] = host
	}
	command = regexp.MustCompile(`\bIMAGE\b`).ReplaceAllString(command, lab.TestImage)
	var typing errgroup.Group
	said := make([]string, len(hosts))
	for i, host := range hosts {
		typing.Go(func() (err error) {
			if said[i], err = typeOn(ts, host, command); err != nil {
				err = fmt.Errorf("%s$ %s: %w", host.Name(), command, err)
			}
			return err
		})
	}
	err := typing.Wait()
	for i, host := range hosts {
		ts.Logf("%s$ %s\n%s", host.Name(), command, said[i])
		if token := printedToken.FindStringSubmatch(said[i]); token != nil {
			ts.Check(os.WriteFile(ts.MkAbs("answer"), []byte(token[1]+"\n"), 0o600))
		}
	}
	return err
}

// typeOn runs a command line on a terminal of the host, and gives all that was
// to be read there.
func typeOn(ts *testscript.TestScript, host *lab.Host, command string) (said string, err error) {
	answer, err := os.ReadFile(ts.MkAbs("answer"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	var failed error
	waited := until(context.Background(), func() error {
		cmd := host.Command(context.Background(), "script", "-qec", command, "/dev/null")
		if e := sessionOf(ts).etcd; e != nil {
			cmd.Env = append(cmd.Env, e.ctl(host.Node, hostpath.EtcdClientDir).environ()...)
		}
		said, failed = typed(cmd, strings.Fields(string(answer)))
		if failed != nil && comesLater.MatchString(said) {
			return failed
		}
		return nil
	})
	return said, errors.Join(waited, failed)
}

// typed runs a command that has a terminal, and answers each question on that.
func typed(cmd *exec.Cmd, answers []string) (said string, err error) {
	keyboard, err := cmd.StdinPipe()
	if err != nil {
		return "", err
	}
	defer keyboard.Close()
	t := &terminal{keyboard: keyboard, answers: answers}
	cmd.Stdout, cmd.Stderr = t, t
	err = cmd.Run()
	return strings.ReplaceAll(string(t.said), "\r\n", "\n"), err
}

// terminal is a screen whose reader types an answer when there is a question.
type terminal struct {
	said     []byte
	keyboard io.Writer
	answers  []string
}

func (t *terminal) Write(p []byte) (int, error) {
	t.said = append(t.said, p...)
	if !bytes.HasSuffix(t.said, []byte(": ")) || len(t.answers) == 0 {
		return len(p), nil
	}
	_, err := fmt.Fprintln(t.keyboard, t.answers[0])
	t.answers = t.answers[1:]
	return len(p), err
}

// comesLater is what Docker says of a network that another host has just made.
var comesLater = regexp.MustCompile(`network \S+ not found`)
