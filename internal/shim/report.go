package shim

import (
	"encoding/json"
	"os"
	"strconv"
	"time"
)

// logLine has the fields of runc's log in JSON.
type logLine struct {
	Level string `json:"level"`
	Msg   string `json:"msg"`
	Time  string `json:"time"` // RFC 3339
}

// report tells an error to whoever waits. containerd takes the message it gives
// to Docker from the last line of level "error" in the --log file (go-runc's
// and containerd-shim-runc-v2's way of asking a runtime), and for want of it
// from standard error. Logging is the last thing that happens, so its own
// failure has nowhere to go.
func (c Call) report(err error) {
	_, _ = os.Stderr.WriteString(err.Error() + "\n")
	if c.Log == "" {
		return
	}
	line := []byte(c.line(err, time.Now()))
	f, openErr := os.OpenFile(c.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if openErr != nil {
		return
	}
	_, _ = f.Write(append(line, '\n'))
	_ = f.Close()
}

func (c Call) line(err error, now time.Time) string {
	stamp := now.Format(time.RFC3339)
	if c.JSON {
		// Encoding a struct of texts cannot fail.
		raw, _ := json.Marshal(logLine{Level: "error", Msg: err.Error(), Time: stamp})
		return string(raw)
	}
	return `time="` + stamp + `" level=error msg=` + strconv.Quote(err.Error())
}
