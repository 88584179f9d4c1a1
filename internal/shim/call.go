package shim

import (
	"strings"

	"github.com/particle-net/particle/seccomp"
)

// Call is a runtime's command line, as far as the shim cares.
type Call struct {
	Args    []string // without the program's name
	Command string   // empty if the command line is not understood
	ID      string   // of the container
	Root    string   // directory with a directory of state for each container
	Log     string   // file for errors, empty for standard error only
	JSON    bool     // errors are logged as JSON
	Bundle  string   // create, run, restore
	Process string   // exec: file with the OCI process
	Force   bool     // delete
	caps    []flag   // exec: each --cap
}

// flag is the place of a flag and its value in Args: one argument for
// "--cap=X", two for "--cap X".
type flag struct {
	at, size int
	value    string
}

// defaultRoot is runc's when it runs as root.
const defaultRoot = "/run/runc"

// Flags that take a value, of all runc versions from 1.0 to 1.5. The flags of
// the commands can share one table because none means two things in the
// commands that matter here. A flag that is in neither table is taken for a
// switch, unless its value follows an equals sign.
const (
	globalValues  = " log log-format root rootless criu "
	commandValues = " bundle b console-socket pidfd-socket pid-file preserve-fds process p cwd env e user u" +
		" additional-gids g process-label apparmor cap c cgroup image-path work-path parent-path" +
		" manage-cgroups-mode empty-ns lsm-profile lsm-mount-context status-fd page-server "
	switches = " debug systemd-cgroup help h version v no-pivot no-new-keyring no-subreaper detach d keep force f" +
		" tty t no-new-privs ignore-paused all a tcp-established ext-unix-sk shell-job file-locks auto-dedup" +
		" lazy-pages leave-running "
)

// ParseCall reads a command line as runc does: Go's flag syntax, in which one
// dash is as good as two, with the global flags before the command. Command
// stays empty when no command can be told, and the runtime shall say why.
func ParseCall(args []string) Call {
	c := Call{Args: args, Root: defaultRoot}
	i := 0
	for i < len(args) {
		name, value, size := readFlag(args[i:], globalValues)
		if size == 0 {
			break
		}
		switch name {
		case "":
			return c // "--" before a command: nothing runc would do
		case "log":
			c.Log = value
		case "log-format":
			c.JSON = value == "json"
		case "root":
			c.Root = value
		default:
			if !known(name, globalValues+switches) && !strings.Contains(args[i], "=") {
				return c // the next argument may be its value, or the command
			}
		}
		i += size
	}
	if i < len(args) && args[i] != "" {
		c.command(args[i], i+1)
	}
	return c
}

// command reads the flags and arguments of a command from Args[i:].
func (c *Call) command(name string, i int) {
	c.Command = name
	var positional []string
	guess := false // a flag of a runtime newer than the tables was met
	for i < len(c.Args) {
		flagName, value, size := readFlag(c.Args[i:], commandValues)
		switch {
		case size == 0:
			positional = append(positional, c.Args[i])
			size = 1
			if name == "exec" && !guess {
				i = len(c.Args) // what follows is the process's own command line
			}
		case flagName == "": // "--"
			positional = append(positional, c.Args[i+1:]...)
			i = len(c.Args)
		default:
			guess = guess || !known(flagName, commandValues+switches)
			c.set(flagName, flag{i, size, value})
		}
		i += size
	}
	switch {
	case len(positional) == 0:
	case guess:
		// containerd gives the id last, in every command. After an unknown flag
		// the first argument may be the flag's value.
		c.ID = positional[len(positional)-1]
	default:
		c.ID = positional[0]
	}
}

func (c *Call) set(name string, f flag) {
	switch name {
	case "bundle", "b":
		c.Bundle = f.value
	case "process", "p":
		c.Process = f.value
	case "cap", "c":
		c.caps = append(c.caps, f)
	case "force", "f":
		c.Force = f.value != "false" && f.value != "0"
	}
}

// readFlag reads the flag at the front of args. Its size is the number of
// arguments it takes, 0 if there is no flag; the name of "--" is empty.
func readFlag(args []string, values string) (name, value string, size int) {
	arg := args[0]
	if len(arg) < 2 || arg[0] != '-' {
		return "", "", 0
	}
	name = strings.TrimPrefix(arg[1:], "-")
	if name, value, ok := strings.Cut(name, "="); ok {
		return name, value, 1
	}
	if known(name, values) && len(args) > 1 {
		return name, args[1], 2
	}
	return name, "", 1
}

func known(name, table string) bool {
	return name != "" && strings.Contains(table, " "+name+" ")
}

// confined is the command line without the flags that would give a process
// capabilities that cannot be shared.
func (c Call) confined() []string {
	var out []string
	at := 0
	for _, f := range c.caps {
		if seccomp.IsUnshareable(f.value) {
			out = append(out, c.Args[at:f.at]...)
			at = f.at + f.size
		}
	}
	return append(out, c.Args[at:]...)
}
