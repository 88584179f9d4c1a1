package hostview

import (
	"regexp"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/internal/hostpath"
)

// inside finds paths of the host as the plugin sees them. What stands before one
// must not make it the rest of a longer path; "//" is a URL's.
var inside = regexp.MustCompile(`(^|//|[^\w./-])(?:` + regexp.QuoteMeta(hostpath.PluginRoot) + `(/run|` +
	regexp.QuoteMeta(hostpath.StateDir) + `)|/proc/1/root)(/|[^\w.-]|$)`)

// Text translates the paths in a text.
func Text(s string) string {
	return inside.ReplaceAllStringFunc(s, func(found string) string {
		part := inside.FindStringSubmatch(found)
		if part[2] == "" && part[3] != "/" {
			part[2] = "/" // the root itself
		}
		return part[1] + part[2] + part[3]
	})
}

// Error translates the paths in an error's text; nil stays nil. errors.Is and
// errors.As see through to err.
func Error(err error) error {
	if err == nil {
		return nil
	}
	return translated{err}
}

type translated struct{ error }

func (t translated) Error() string { return Text(t.error.Error()) }

func (t translated) Unwrap() error { return t.error }

// Log translates the lines of a logger that it is added to as a hook.
type Log struct{}

// Levels are all of them.
func (Log) Levels() []logrus.Level { return logrus.AllLevels }

// Fire is called with a line's own copy of its fields.
func (Log) Fire(line *logrus.Entry) error {
	line.Message = Text(line.Message)
	for name, value := range line.Data {
		switch v := value.(type) {
		case error:
			line.Data[name] = Error(v)
		case string:
			line.Data[name] = Text(v)
		}
	}
	return nil
}
