package daemonjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

const (
	keyRuntimes = "runtimes"
	keyDefault  = "default-runtime"
	// stockRuntime is the runtime every dockerd knows without configuration.
	stockRuntime = "runc"
)

// ErrForeign is the cause when the file already gives our runtime's name to
// another program.
var ErrForeign = errors.New("the file already gives that runtime's name to another program")

// Runtime is what a merge registers.
type Runtime struct {
	Name string
	Path string // absolute, on the daemon's host
	// Default makes it the runtime of containers that name none.
	Default bool
}

// Edit is what a merge has replaced. The zero value stands for a text that had
// neither of our keys.
type Edit struct {
	// Bare is the whole text if it held no setting (absent, blank or {}); nil
	// if it did.
	Bare []byte `json:"bare,omitempty"`
	// WasBare tells an empty Bare from none.
	WasBare bool `json:"wasBare,omitempty"`
	// Default is the JSON text default-runtime had; nil if it was not set.
	Default []byte `json:"default,omitempty"`
	// Runtimes is the JSON text runtimes had if it named no runtime (null or
	// {}); nil if it named one, or was not set.
	Runtimes []byte `json:"runtimes,omitempty"`
	// HadRuntimes says that runtimes was set.
	HadRuntimes bool `json:"hadRuntimes,omitempty"`
}

var byteOrderMark = []byte("\xef\xbb\xbf")

// Check reports whether dockerd could read the text: nothing, or one JSON
// object without anything behind it.
func Check(text []byte) error {
	_, err := parse(text)
	return err
}

// parse gives the top object of a text, without members if the text is blank.
func parse(text []byte) (object, error) {
	body := bytes.TrimPrefix(text, byteOrderMark)
	if len(bytes.TrimSpace(body)) == 0 {
		return object{}, nil
	}
	var whole json.RawMessage
	if err := json.Unmarshal(body, &whole); err != nil {
		return object{}, describe(body, err)
	}
	return parseObject(text, len(text)-len(body))
}

// describe adds the line to a syntax error, because a byte offset helps nobody
// with an editor open.
func describe(text []byte, err error) error {
	var syntax *json.SyntaxError
	if !errors.As(err, &syntax) {
		return err
	}
	at := min(int(syntax.Offset), len(text))
	return fmt.Errorf("line %d: %w", 1+bytes.Count(text[:at], []byte("\n")), err)
}

// Merge adds the runtime to the text and says what it has replaced. A text that
// has it already is returned with an Edit that takes it out altogether.
func Merge(text []byte, rt Runtime) ([]byte, Edit, error) {
	top, err := parse(text)
	if err != nil {
		return nil, Edit{}, err
	}
	if len(top.members) == 0 {
		return fresh(rt), Edit{Bare: text, WasBare: true}, nil
	}
	var edit Edit
	text, err = mergeRuntime(text, top, rt, &edit)
	if err != nil {
		return nil, Edit{}, err
	}
	// Positions have moved.
	if top, err = parse(text); err != nil {
		return nil, Edit{}, err
	}
	i, err := top.find(keyDefault)
	if err != nil {
		return nil, Edit{}, err
	}
	if i < 0 {
		if rt.Default {
			text = top.add(text, keyDefault, quote(rt.Name))
		}
		return text, edit, nil
	}
	// Noted also where it stays: the text that this is to replace may name ours, and is
	// taken for what it is by this edit if it is not replaced after all.
	value := top.members[i].value
	if old := text[value.from:value.to]; !isString(old, rt.Name) {
		edit.Default = bytes.Clone(old)
	}
	if rt.Default {
		text = splice(text, value, quote(rt.Name))
	}
	return text, edit, nil
}

func mergeRuntime(text []byte, top object, rt Runtime, edit *Edit) ([]byte, error) {
	style := styleOf(text, top)
	i, err := top.find(keyRuntimes)
	if err != nil {
		return nil, err
	}
	if i < 0 {
		return top.add(text, keyRuntimes, style.runtimes(rt)), nil
	}
	value := top.members[i].value
	raw := text[value.from:value.to]
	runtimes, err := parseObject(text, value.from)
	if string(raw) != "null" && err != nil {
		return nil, fmt.Errorf("%q is no object", keyRuntimes)
	}
	if len(runtimes.members) == 0 {
		edit.HadRuntimes, edit.Runtimes = true, bytes.Clone(raw)
		return splice(text, value, style.runtimes(rt)), nil
	}
	j, err := runtimes.find(rt.Name)
	if err != nil {
		return nil, err
	}
	if j < 0 {
		edit.HadRuntimes = true
		return runtimes.add(text, rt.Name, styleOf(text, runtimes).runtime(rt)), nil
	}
	// Ours already, from an installation whose record is lost: to take the
	// runtime out, take the whole key out if nothing else is in it.
	edit.HadRuntimes = len(runtimes.members) > 1
	if !leadsTo(text, runtimes.members[j], rt.Path) {
		return nil, ErrForeign
	}
	return text, nil
}

// leadsTo tells whether a runtime's definition names the given program.
func leadsTo(text []byte, m member, path string) bool {
	var definition struct {
		Path string `json:"path"`
	}
	err := json.Unmarshal(text[m.value.from:m.value.to], &definition)
	return err == nil && definition.Path == path
}

// isForeign tells whether the text gives the runtime's name to another program.
func isForeign(text []byte, rt Runtime) (bool, error) {
	top, err := parse(text)
	if err != nil {
		return false, err
	}
	i, err := top.find(keyRuntimes)
	if err != nil || i < 0 {
		return false, err
	}
	runtimes, err := parseObject(text, top.members[i].value.from)
	if err != nil {
		return false, nil // null: no runtime in it
	}
	j, err := runtimes.find(rt.Name)
	if err != nil || j < 0 {
		return false, err
	}
	return !leadsTo(text, runtimes.members[j], rt.Path), nil
}

// Unmerge takes the runtime out of a text again and puts back what Merge had
// replaced. Settings made by others since then stay, and so does a runtime that
// has our name and another path.
func Unmerge(text []byte, rt Runtime, edit Edit) ([]byte, error) {
	if foreign, err := isForeign(text, rt); err != nil || foreign {
		return text, err
	}
	text, err := unmergeDefault(text, rt.Name, edit)
	if err != nil {
		return nil, err
	}
	text, err = unmergeRuntime(text, rt.Name, edit)
	if err != nil {
		return nil, err
	}
	top, err := parse(text)
	if err == nil && len(top.members) == 0 && edit.WasBare {
		return bytes.Clone(edit.Bare), nil
	}
	return text, err
}

func unmergeDefault(text []byte, name string, edit Edit) ([]byte, error) {
	top, err := parse(text)
	if err != nil {
		return nil, err
	}
	i, err := top.find(keyDefault)
	if err != nil || i < 0 {
		return text, err
	}
	value := top.members[i].value
	if !isString(text[value.from:value.to], name) {
		return text, nil
	}
	if edit.Default != nil {
		return splice(text, value, string(edit.Default)), nil
	}
	return top.remove(text, i), nil
}

func unmergeRuntime(text []byte, name string, edit Edit) ([]byte, error) {
	top, err := parse(text)
	if err != nil {
		return nil, err
	}
	i, err := top.find(keyRuntimes)
	if err != nil || i < 0 {
		return text, err
	}
	value := top.members[i].value
	runtimes, err := parseObject(text, value.from)
	if err != nil {
		return text, nil // null: nothing of ours in it
	}
	j, err := runtimes.find(name)
	if err != nil || j < 0 {
		return text, err
	}
	switch {
	case len(runtimes.members) > 1:
		return runtimes.remove(text, j), nil
	case edit.Runtimes != nil:
		return splice(text, value, string(edit.Runtimes)), nil
	case edit.HadRuntimes:
		return runtimes.remove(text, j), nil
	default:
		return top.remove(text, i), nil
	}
}

// Handover is a text to be loaded once, between a merged text and the one from
// before the merge. A dockerd (20.10 to 29: daemon/reload_unix.go, reloadPlatform)
// keeps its runtimes and its default runtime when a reloaded file does not set
// them, so a file that merely lost our keys would leave us in force until the
// next restart. The handover sets both keys, to what they are without us.
func Handover(before []byte) ([]byte, error) {
	top, err := parse(before)
	if err != nil {
		return nil, err
	}
	if len(top.members) == 0 {
		return []byte(`{"` + keyRuntimes + `": {}, "` + keyDefault + `": "` + stockRuntime + "\"}\n"), nil
	}
	text := before
	for _, m := range []struct{ key, value string }{{keyRuntimes, "{}"}, {keyDefault, quote(stockRuntime)}} {
		if top, err = parse(text); err != nil {
			return nil, err
		}
		i, err := top.find(m.key)
		if err != nil {
			return nil, err
		}
		if i < 0 {
			text = top.add(text, m.key, m.value)
			continue
		}
		// null and "" count as not set.
		value := top.members[i].value
		if old := string(text[value.from:value.to]); old == "null" || old == `""` {
			text = splice(text, value, m.value)
		}
	}
	return text, nil
}

func isString(raw []byte, want string) bool {
	var s string
	return json.Unmarshal(raw, &s) == nil && s == want
}

// fresh is the file for a daemon that had no settings.
func fresh(rt Runtime) []byte {
	s := style{line: "\n", indent: "  "}
	text := "{\n  " + quote(keyRuntimes) + ": " + s.runtimes(rt)
	if rt.Default {
		text += ",\n  " + quote(keyDefault) + ": " + quote(rt.Name)
	}
	return []byte(text + "\n}\n")
}

// style is how a file lays out its objects.
type style struct {
	line   string // between members: a line break, or empty if all is on one line
	indent string // before a member of the object at hand
	unit   string // more for each level; empty means as much as indent
}

func styleOf(text []byte, o object) style {
	lead := leadOf(text, o.members[len(o.members)-1])
	n := strings.LastIndexByte(lead, '\n')
	if n < 0 {
		return style{}
	}
	s := style{line: "\n", indent: lead[n+1:]}
	if n > 0 && lead[n-1] == '\r' {
		s.line = "\r\n"
	}
	if top, err := parse(text); err == nil && top.from != o.from && len(top.members) > 0 {
		s.unit = styleOf(text, top).indent
	}
	return s
}

func (s style) deeper() style {
	unit := s.unit
	if unit == "" {
		unit = s.indent
	}
	return style{line: s.line, indent: s.indent + unit, unit: unit}
}

// object lays out an object with one member, as the value of a member of the
// object at hand.
func (s style) object(key, value string) string {
	if s.line == "" {
		return "{" + quote(key) + ": " + value + "}"
	}
	return "{" + s.line + s.deeper().indent + quote(key) + ": " + value + s.line + s.indent + "}"
}

func (s style) runtime(rt Runtime) string { return s.object("path", quote(rt.Path)) }

func (s style) runtimes(rt Runtime) string {
	return s.object(rt.Name, s.deeper().runtime(rt))
}
