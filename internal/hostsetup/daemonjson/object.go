package daemonjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// span is a half-open range of bytes in a text.
type span struct{ from, to int }

// member is one `"key": value` of an object.
type member struct {
	key   string
	name  span // the key with its quotes
	value span
}

// object is a JSON object inside a text, from brace to brace.
type object struct {
	span
	members []member
}

// parseObject reads the object that begins at the first byte of text[from:]
// that is no white space. The text must be valid JSON from there on.
func parseObject(text []byte, from int) (object, error) {
	at := skipSpace(text, from)
	if at >= len(text) || text[at] != '{' {
		return object{}, errors.New("not a JSON object")
	}
	obj := object{span: span{from: at}}
	at = skipSpace(text, at+1)
	for text[at] != '}' {
		name := span{at, skipValue(text, at)}
		var key string
		if err := json.Unmarshal(text[name.from:name.to], &key); err != nil {
			return object{}, err
		}
		at = skipSpace(text, name.to) + 1 // the colon
		at = skipSpace(text, at)
		value := span{at, skipValue(text, at)}
		obj.members = append(obj.members, member{key: key, name: name, value: value})
		at = skipSpace(text, value.to)
		if text[at] == ',' {
			at = skipSpace(text, at+1)
		}
	}
	obj.to = at + 1
	return obj, nil
}

// find gives the index of the member named key, or -1. A key that is there
// twice is an error: Docker takes the last one, a reader of the file the first.
func (o object) find(key string) (int, error) {
	found := -1
	for i, m := range o.members {
		if m.key != key {
			continue
		}
		if found >= 0 {
			return -1, fmt.Errorf("the key %q is there twice", key)
		}
		found = i
	}
	return found, nil
}

// add puts a member behind the last one, in the manner of the last one. The
// object must have a member.
func (o object) add(text []byte, key, value string) []byte {
	last := o.members[len(o.members)-1]
	lead := leadOf(text, last)
	colon := ": "
	if lead == "" {
		colon = ":"
	}
	return splice(text, span{last.value.to, last.value.to}, ","+lead+quote(key)+colon+value)
}

// remove takes out the member at index i together with the comma and the white
// space that add would have put there.
func (o object) remove(text []byte, i int) []byte {
	switch {
	case i == len(o.members)-1 && i > 0:
		return splice(text, span{o.members[i-1].value.to, o.members[i].value.to}, "")
	case i < len(o.members)-1:
		return splice(text, span{o.members[i].name.from, o.members[i+1].name.from}, "")
	default:
		return splice(text, span{o.from + 1, o.to - 1}, "")
	}
}

// leadOf gives the white space before a member.
func leadOf(text []byte, m member) string {
	from := m.name.from
	for from > 0 && isSpace(text[from-1]) {
		from--
	}
	return string(text[from:m.name.from])
}

func splice(text []byte, at span, with string) []byte {
	out := make([]byte, 0, len(text)+len(with))
	out = append(out, text[:at.from]...)
	out = append(out, with...)
	return append(out, text[at.to:]...)
}

func quote(s string) string {
	b, _ := json.Marshal(s) // a string always marshals
	return string(b)
}

// skipValue gives the end of the value that begins at text[from], which must be
// valid JSON.
func skipValue(text []byte, from int) int {
	switch text[from] {
	case '"':
		return skipString(text, from)
	case '{', '[':
		depth := 0
		for at := from; ; at++ {
			switch text[at] {
			case '"':
				at = skipString(text, at) - 1
			case '{', '[':
				depth++
			case '}', ']':
				depth--
			}
			if depth == 0 {
				return at + 1
			}
		}
	default:
		n := bytes.IndexAny(text[from:], ",]} \t\r\n")
		if n < 0 {
			return len(text)
		}
		return from + n
	}
}

func skipString(text []byte, from int) int {
	at := from + 1
	for text[at] != '"' {
		if text[at] == '\\' {
			at++
		}
		at++
	}
	return at + 1
}

func skipSpace(text []byte, from int) int {
	for from < len(text) && isSpace(text[from]) {
		from++
	}
	return from
}

func isSpace(b byte) bool { return strings.IndexByte(" \t\r\n", b) >= 0 }
