#!/bin/sh
# Judges this host by OpenSCAP: CIS Level 1 server, no rule left out. Results go to /root/rules, RULE:RESULT a line.
ssg=xccdf_org.ssgproject.content
scan="oscap xccdf eval --progress --profile ${ssg}_profile_cis_level1_server"
content=/opt/content/usr/share/xml/scap/ssg/content/ssg-debian12-ds.xml
rules=/root/rules

# options RESULT OPTION: the option for each rule with a result.
options() {
    sed -n "s/^\(${ssg}_rule_[^:]*\):$1\$/$2 \1/p" $rules | tr '\n' ' '
}

# OpenSCAP 1.3.7 waits for itself for ever now and then. One that has been silent for a quarter of an hour gives way to
# another, which goes on behind it.
result=137
while [ $result = 137 ]; do
    touch $rules
    # shellcheck disable=SC2046 # two words for each
    $scan $(options '.*' --skip-rule) $content >>$rules 2>/root/oscap.log &
    while kill -0 $! 2>/dev/null; do
        sleep 10
        [ $(($(date +%s) - $(stat --format %Y $rules))) -lt 900 ] || kill -KILL $!
    done
    wait $!
    result=$?
done

# It ran checks that are scripts in /tmp, which may run nothing on a hardened host. These are asked again where it may.
again=$(options error --rule)
if [ $result != 1 ] && [ -n "$again" ]; then
    sed -i '/:error$/d' $rules
    unshare --mount sh -c "mount -o remount,exec /tmp; $scan $again $content" >>$rules 2>>/root/oscap.log
    result=$?
fi
[ $result != 1 ] # 0: all pass, 2: one does not
