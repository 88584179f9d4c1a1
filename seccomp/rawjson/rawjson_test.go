package rawjson_test

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/particle-net/particle/seccomp/rawjson"
)

// walk rebuilds a value from what the scanner finds.
func walk(t *testing.T, doc []byte, s rawjson.Span) string {
	t.Helper()
	var parts []string
	var err error
	open, end := "", ""
	switch s.Kind(doc) {
	case '{':
		open, end = "{", "}"
		err = rawjson.Members(doc, s, func(key string, value rawjson.Span) error {
			parts = append(parts, string(rawjson.Quote(nil, key))+":"+walk(t, doc, value))
			return nil
		})
	case '[':
		open, end = "[", "]"
		err = rawjson.Elements(doc, s, func(value rawjson.Span) error {
			parts = append(parts, walk(t, doc, value))
			return nil
		})
	case '"':
		text, err := rawjson.Text(doc, s)
		if err != nil {
			t.Fatal(err)
		}
		return string(rawjson.Quote(nil, text))
	default:
		return string(doc[s.Start:s.End])
	}
	if err != nil {
		t.Fatal(err)
	}
	return open + strings.Join(parts, ",") + end
}

// canonical is a document as encoding/json reads it.
func canonical(t *testing.T, doc []byte) string {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(string(doc)))
	dec.UseNumber()
	var value any
	if err := dec.Decode(&value); err != nil {
		t.Fatalf("%v: %s", err, doc)
	}
	out, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// Whatever is valid JSON, the scanner finds every value of.
func FuzzScan(f *testing.F) {
	for _, seed := range []string{`{"a":[1,-2.5e+3,null,true,"x\"\\\u00e9"],"b":{}}`, ` [ ] `, `"\\"`, `{"a" : {"b":[{}]} , "c":false}`, `[1,]`, `{"a":1,}`, `]`, `{"a":"`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		top, err := rawjson.Root(doc)
		if !json.Valid(doc) {
			if err == nil { // must not panic, whatever it finds
				_ = rawjson.Members(doc, top, func(string, rawjson.Span) error { return nil })
				_ = rawjson.Elements(doc, top, func(rawjson.Span) error { return nil })
			}
			return
		}
		if err != nil {
			t.Fatalf("%v: %s", err, doc)
		}
		if !utf8.Valid(doc) {
			return
		}
		if got, want := canonical(t, []byte(walk(t, doc, top))), canonical(t, doc); got != want {
			t.Fatalf("%s\ngot  %s\nwant %s", doc, got, want)
		}
	})
}

func TestUint(t *testing.T) {
	for text, want := range map[string]uint64{"0": 0, "18446744073709551615": 1<<64 - 1, "null": 0} {
		if got, err := rawjson.Uint([]byte(text), rawjson.Span{End: len(text)}); got != want || err != nil {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"-1", "1.5", `"1"`, "18446744073709551616"} {
		if got, err := rawjson.Uint([]byte(text), rawjson.Span{End: len(text)}); err == nil {
			t.Errorf("%s was read as %d", text, got)
		}
	}
}

func TestTextsLeavesOthersOut(t *testing.T) {
	doc := []byte(`["a",1,null,"b"]`)
	got, err := rawjson.Texts(doc, rawjson.Span{End: len(doc)})
	if err != nil || strings.Join(got, " ") != "a b" {
		t.Errorf("%q, %v", got, err)
	}
}
