package shim

import (
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/holder"
)

// Main runs one command and returns the exit code for the case that the real
// runtime was not executed in place of this program. argv and env are as
// os.Args and os.Environ.
func Main(argv, env []string) int {
	var args []string
	if len(argv) > 1 {
		args = argv[1:]
	}
	h := DefaultHost()
	return h.Run(ParseCall(args), env)
}

// Run does the shim's part of a command, then becomes the real runtime.
func (h *Host) Run(c Call, env []string) int {
	if c.Command == holder.Command {
		return h.hold(c)
	}
	var shared *confinement
	err := h.load(variable(env, "PATH"))
	if err == nil {
		switch c.Command {
		case "create", "run", "restore":
			shared, err = h.create(c)
		case "start":
			err = h.start(c)
		case "exec":
			c.Args, shared, err = h.exec(c)
		case "delete":
			var done bool
			var code int
			if done, code, err = h.remove(c, env); done {
				return code
			}
		}
	}
	if err == nil {
		err = h.enter(shared, env)
	}
	if err == nil {
		argv := slices.Insert(slices.Clone(c.Args), 0, h.Runtime)
		err = &fault.Error{Op: "execute", On: h.Runtime, Err: syscall.Exec(h.Runtime, argv, env)}
	}
	c.report(err)
	if c.Command == "exec" {
		return 255 // as runc, so that no code of the process's is taken for it
	}
	return 1
}

func variable(env []string, name string) string {
	for _, v := range env {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}

// writeFile puts a file in place in one step: a reader, or a second attempt
// after a crash, finds the old content or the new.
func writeFile(path string, content []byte, mode os.FileMode) error {
	temp := path + ".particle"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode) // whatever the umask
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp)
	}
	return err
}
